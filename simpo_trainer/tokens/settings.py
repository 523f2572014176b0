"""`RowSettings`: how preference rows become token rows. All of these settings are in the key of the cached rows."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..data.ranking import PairChoice
from ..data.watched import BadRow
from ..knobs import knob, knob_problems


@dataclass
class RowSettings:
    """Settings for the making of token rows: pairs, lengths, system messages."""

    pairs: PairChoice = knob(
        "all",
        "Which pairs of a prompt's ranked answers are trained: 'all' is every two of different rank, 'best_worst' the "
        "best against the worst, 'adjacent' each against the next lower rank; of answers that share a rank, each. "
        "Equal ranks make no pair, and answers in no pair are not run.",
    )
    margin_scale: float = knob(
        0.0,
        "What a point of score (or a rank) between two ranked answers adds to the target margin of their pair, >= 0: "
        "nats per token, or nats without average_log_prob.",
        lambda x: 0 <= x < math.inf,
        "it must be a number, 0 or above. Set margin_scale: 0.0.",
    )
    max_length: int = knob(
        2048,
        "Longest prompt + answer, in tokens.",
        lambda x: x >= 2,
        "a prompt and an answer need at least 2 tokens. Set max_length: 2048.",
    )
    max_prompt_length: int | None = knob(
        None,
        "Length, in tokens, to which the prompt of an overlong row is cut, below max_length. Unset means the paper's "
        "share, max_length x 1800 / 2048, rounded down.",
    )
    truncation_mode: Literal["keep_end", "keep_start"] = knob(
        "keep_end",
        "Which end of such a prompt is kept: 'keep_end' or 'keep_start'. A leading BOS and the generation header "
        "always stay.",
    )
    overlong: Literal["truncate", "official", "drop", "error"] = knob(
        "truncate",
        "What to do where prompt + longest answer exceed max_length: 'truncate' cuts the prompt to max_prompt_length "
        "and then, if still needed, all answers to the room that the prompt leaves; 'official' is the rule of SimPO's "
        "own code, which then cuts all answers to max_length - max_prompt_length, however short the prompt is; 'drop' "
        "leaves the row out; 'error' stops.",
    )
    on_bad_row: BadRow | None = knob(
        None,
        "What to do with a row that cannot be used: 'error' stops at the first one, 'drop' leaves it out and counts "
        "it, at most half of the rows. Unset means 'drop' for rows that are read but have nothing to teach (no answer, "
        "equal answers), and 'error' for those that cannot be read (text that is not UTF-8, broken JSON).",
    )
    system_messages: Literal["keep", "merge", "drop"] = knob(
        "keep",
        "System messages of the rows: 'keep' hands them to the chat template, which may refuse them; 'merge' puts each "
        "in front of the user message that follows, two line breaks between; 'drop' leaves them out.",
    )
    auto_insert_empty_system_msg: bool = knob(
        False,
        "Put an empty system message in front of conversations without one where the text of the chat template "
        "mentions 'system' or '<|im_start|>', as alignment-handbook does.",
    )

    @classmethod
    def of(cls, settings: "RowSettings") -> "RowSettings":
        """Returns these settings alone, out of a larger class of settings, with the values that are used."""
        own = {each.name: getattr(settings, each.name) for each in fields(RowSettings)}
        return RowSettings(**{**own, **settled_rows(settings)})

    @property
    def prompt_limit(self) -> int:
        """Returns `max_prompt_length`, or the value that it takes where it is unset."""
        if self.max_prompt_length is not None:
            return self.max_prompt_length
        return max(1, self.max_length * 1800 // 2048)


def settled_rows(settings: RowSettings) -> dict[str, Any]:
    """Returns the values that unset settings of the rows take."""
    return {"max_prompt_length": settings.prompt_limit}


def row_problems(settings: RowSettings) -> list[str]:
    """A sentence for each setting that cannot be used."""
    problems = knob_problems(RowSettings, settings)
    if settings.max_prompt_length is not None and not 1 <= settings.max_prompt_length < settings.max_length:
        problems.append(
            f"max_prompt_length is {settings.max_prompt_length} and max_length {settings.max_length}; "
            "max_prompt_length must be at least 1 and below max_length, or an overlong prompt leaves no room for an "
            "answer. Lower max_prompt_length, leave it out to have it follow, or raise max_length."
        )
    if settings.auto_insert_empty_system_msg and settings.system_messages in ("merge", "drop"):
        problems.append(
            f"auto_insert_empty_system_msg is true and system_messages is {settings.system_messages!r}: one inserts "
            "what the other removes. Leave out one of the two."
        )
    return problems
