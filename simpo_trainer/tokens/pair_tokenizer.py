"""One batch of preference rows to token ids: the function that `tokenization.tokenize_preferences` maps over a set."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Features
from transformers import PreTrainedTokenizerBase

from ..data.drops import RowDropped, caught
from ..data.messages import (
    Message,
    check_notes,
    check_prompt,
    explicit_prompt,
    ranked_answers,
    row_template_kwargs,
    settle_system_messages,
    without_filled_keys,
)
from ..data.ranking import answer_values, ranked_pairs
from .rows import RANKED_TOKEN_COLUMNS, TOKEN_COLUMNS, row_length
from .settings import RowSettings
from .templates import RowTexts, TurnEnd, render_conversation

# Characters behind which a text may be tokenized as if it went on from another.
_ANCHORS = "\n.a0"


@dataclass(frozen=True)
class PairTokenizer:
    """The function that `Dataset.map` runs, with all it needs; picklable for several processes.

    `turn_end` is None where no row is a conversation; `prefix_ids` are the special tokens that the tokenizer puts in
    front of plain text, usually BOS; `opening` are messages in front of each conversation without a system message.
    `inputs` are the types of the rows' columns, None where a stream does not know them. Without `ranked` answers, a
    row is a pair, the better answer first, and is dropped where one of the two cannot be used.
    """

    tokenizer: PreTrainedTokenizerBase
    turn_end: TurnEnd | None
    prefix_ids: list[int]
    features: Features
    settings: RowSettings
    opening: list[Message]
    inputs: Mapping[str, Any] | None
    ranked: bool

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """The columns of `features` for a batch; a dropped row has no ids and a reason."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        texts = [caught(self._texts, row) for row in rows]
        encoded = self._encode([row for row in texts if isinstance(row, RowTexts)])
        columns: dict[str, list] = {name: [] for name in self.features}
        for index, row, outcome in zip(indices, rows, texts, strict=True):
            if isinstance(outcome, RowTexts):
                done = caught(self._finish, row, outcome.conversational, *next(encoded))
                outcome = done if isinstance(done, RowDropped) else {**done, **_notes(outcome)}
            if isinstance(outcome, RowDropped):
                ids = RANKED_TOKEN_COLUMNS if self.ranked else TOKEN_COLUMNS
                detail = self._found(row, outcome.detail)
                outcome = {**dict.fromkeys(ids, []), "reason": outcome.reason, "detail": detail}
            outcome = {"row": index, "margin": row.get("margin")} | outcome
            for name, values in columns.items():
                values.append(outcome.get(name))
        return columns

    def _found(self, row: Mapping[str, Any], detail: str) -> str:
        """The detail of a dropped row; where that ends the run, with what the row is found by in a shuffled stream."""
        if self.settings.on_bad_row != "error":
            return detail
        start = next(
            (repr(row[field])[:80] for field in ("prompt", "chosen", "responses") if row.get(field)), "nothing"
        )
        return f"{detail}; " * bool(detail) + f"the row begins with {start}"

    def _texts(self, row: Mapping[str, Any]) -> RowTexts:
        check_notes(row)
        row = without_filled_keys(row, self.inputs)
        answers: list[Any]
        if self.ranked:
            prompt, answers = ranked_answers(row)
        else:
            prompt, *answers = explicit_prompt(row)
        if isinstance(prompt, list):
            if self.turn_end is None:  # possible in a stream, which is judged by its first row
                raise RowDropped("wrong_type", "a conversation among texts")
            check_prompt(prompt)
            prompt = settle_system_messages(prompt, self.settings.system_messages, self.opening)
            texts = render_conversation(
                self.tokenizer,
                self.turn_end,
                (prompt, *answers),
                row_template_kwargs(row),
                with_header=self.settings.truncation_mode == "keep_start",
            )
        else:
            texts = RowTexts(prompt, tuple(caught(_text, answer) for answer in answers))
        self._usable(texts.answers)
        return texts

    def _usable(self, answers: Sequence[Any]) -> dict[int, Any]:
        """Returns the answers that can be trained on, by their index.

        Raises:
            RowDropped: there are none, or one of a pair cannot be.
        """
        failures = [answer for answer in answers if isinstance(answer, RowDropped)]
        if failures and not (self.ranked and len(failures) < len(answers)):
            raise failures[0]
        return {place: answer for place, answer in enumerate(answers) if not isinstance(answer, RowDropped)}

    def _encode(self, rows: list[RowTexts]) -> Iterator[tuple[list[int], list[list[int] | RowDropped], int]]:
        """Ids of the prompt and the answers of each row, as the tokenizer splits the texts; the header's length.

        What stands before the last special token of a prompt is tokenized once and not again with each answer.
        """
        splitting = [token for token in _splitting_tokens(self.tokenizer) if rows and token in rows[0].prompt]
        starts = [max([0, *(row.prompt.rfind(token) for token in splitting)]) for row in rows]
        heads = encode_texts(self.tokenizer, [row.prompt[:start] for row, start in zip(rows, starts, strict=True)])
        prompts = [row.prompt[start:] for row, start in zip(rows, starts, strict=True)]
        ids = encode_texts(self.tokenizer, prompts)
        given = [(row, text) for row, texts in enumerate(rows) for text in texts.answers if isinstance(text, str)]
        encoded = iter(
            self._encode_answers(
                [ids[row] for row, _ in given], [prompts[row] for row, _ in given], [text for _, text in given]
            )
        )
        answers = [[next(encoded) if isinstance(text, str) else text for text in row.answers] for row in rows]
        whole = [head + tail for head, tail in zip(heads, ids, strict=True)]
        return zip(whole, answers, self._header_lengths(rows, whole), strict=True)

    def _header_lengths(self, rows: list[RowTexts], prompt_ids: list[list[int]]) -> list[int]:
        """Tokens of each prompt that hold what stands behind its last message's text."""
        if self.settings.truncation_mode == "keep_end":
            return [0] * len(rows)  # the header is at the end and never cut
        starts = encode_texts(self.tokenizer, [row.prompt[: len(row.prompt) - len(row.header)] for row in rows])
        return [len(ids) - len(os.path.commonprefix([ids, own])) for ids, own in zip(prompt_ids, starts, strict=True)]

    def _encode_answers(self, prompt_ids: list[list[int]], prompts: list[str], answers: list[str]) -> list[list[int]]:
        """Ids of the answers behind their prompts.

        Where a token would reach over the boundary, the prompt keeps the ids it has at inference, and the answer is
        tokenized on its own.
        """
        fulls = encode_texts(self.tokenizer, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        merged = [i for i, (full, ids) in enumerate(zip(fulls, prompt_ids, strict=True)) if full[: len(ids)] != ids]
        answer_ids = [full[len(ids) :] for full, ids in zip(fulls, prompt_ids, strict=True)]
        for i, ids in zip(merged, _encode_continuations(self.tokenizer, [answers[i] for i in merged]), strict=True):
            answer_ids[i] = ids
        return answer_ids

    def _finish(
        self,
        row: Mapping[str, Any],
        conversational: bool,
        prompt_ids: list[int],
        answers: list[list[int] | RowDropped],
        header_length: int,
    ) -> dict[str, Any]:
        """The token row: special tokens set, pairs made, fitted to length; and its notes."""
        prompt_ids = self._started(prompt_ids, conversational)
        end_id = self.turn_end.token_id if conversational and self.turn_end else self.tokenizer.eos_token_id
        ended = [caught(_ended, ids, end_id) for ids in answers]
        usable = self._usable(ended)
        values = self._values(row, usable)
        ordered = sorted(usable, key=lambda place: -values[place])  # the best first
        pairs = _of_different(ranked_pairs(values, self.settings.pairs), usable)
        if not pairs:
            raise _without_pair(ended) if self.ranked else RowDropped("identical_answers")
        whole = _in_pairs({place: usable[place] for place in ordered}, pairs)
        length = row_length(prompt_ids, whole.values())
        if length > self.settings.max_length and self.settings.overlong in ("drop", "error"):
            raise RowDropped("overlong", f"{length} tokens")
        fitted_prompt, fitted_answers = self._fitted(prompt_ids, list(whole.values()), header_length)
        fitted = dict(zip(whole, fitted_answers, strict=True))
        pairs = _of_different(pairs, fitted)
        if not pairs:
            raise RowDropped("identical_after_truncation")
        fitted = _in_pairs(fitted, pairs)
        lost = [len(whole[place]) - len(ids) for place, ids in fitted.items()]
        return {
            "prompt_ids": fitted_prompt,
            **self._answer_columns(fitted, pairs, values),
            "cut": [len(fitted_prompt) < len(prompt_ids), *(tokens > 0 for tokens in lost)],
            "lost": sum(lost),
            "whole_length": length,
            "length": row_length(fitted_prompt, fitted.values()),
            "pairs": len(pairs),
            "left_out": [answer.reason for answer in ended if isinstance(answer, RowDropped)],
        }

    def _started(self, prompt_ids: list[int], conversational: bool) -> list[int]:
        """The prompt with one BOS where it begins with any, and never empty."""
        if not conversational:
            prompt_ids = self.prefix_ids + prompt_ids
        bos_id = self.tokenizer.bos_token_id
        if not prompt_ids:
            if bos_id is None:
                raise RowDropped("no_prompt")
            prompt_ids = [bos_id]
        while prompt_ids[:2] == [bos_id, bos_id]:  # one from the text or template, one from the tokenizer
            prompt_ids = prompt_ids[1:]
        return prompt_ids

    def _values(self, row: Mapping[str, Any], places: Collection[int]) -> dict[int, float]:
        """Returns the value of each of these answers, the higher the better, without answers that have no score."""
        if not self.ranked:
            return {0: 1.0, 1: 0.0}
        values = answer_values(row)
        return {place: value for place in places if (value := values[place]) is not None}

    def _answer_columns(
        self, answers: dict[int, list[int]], pairs: list[tuple[int, int]], values: Mapping[int, float]
    ) -> dict[str, Any]:
        """The columns of a token row that hold its answers and pairs."""
        if not self.ranked:
            return {"chosen_ids": answers[0], "rejected_ids": answers[1]}
        index = {place: number for number, place in enumerate(answers)}
        return {
            "response_ids": list(answers.values()),
            "chosen": [index[chosen] for chosen, _ in pairs],
            "rejected": [index[rejected] for _, rejected in pairs],
            "margin": [self.settings.margin_scale * (values[chosen] - values[rejected]) for chosen, rejected in pairs],
        }

    def _fitted(
        self, prompt_ids: list[int], answers: list[list[int]], header_length: int
    ) -> tuple[list[int], list[list[int]]]:
        """Returns the row cut to length, by the end of the prompt that is kept."""
        limits = self.settings.max_length, self.settings.prompt_limit
        if self.settings.truncation_mode == "keep_end":
            kept_start = 1 if prompt_ids[0] == self.tokenizer.bos_token_id and limits[1] > 1 else 0
        else:
            kept_start = max(0, limits[1] - header_length)
        official = self.settings.overlong == "official"
        return fit_to_length(prompt_ids, answers, *limits, kept_start=kept_start, official=official)


def _text(answer: str | RowDropped) -> str:
    """An answer that is text."""
    if isinstance(answer, RowDropped):
        raise answer
    if not answer.strip():
        raise RowDropped("empty_answer")
    return answer


def _in_pairs(answers: dict[int, list[int]], pairs: list[tuple[int, int]]) -> dict[int, list[int]]:
    """The answers that are in a pair, in their order; to run others would be waste."""
    sides = {place for pair in pairs for place in pair}
    return {place: ids for place, ids in answers.items() if place in sides}


def _of_different(pairs: list[tuple[int, int]], answers: Mapping[int, list[int]]) -> list[tuple[int, int]]:
    """The pairs whose answers are not the same."""
    return [(chosen, rejected) for chosen, rejected in pairs if answers[chosen] != answers[rejected]]


def _without_pair(answers: Sequence[Any]) -> RowDropped:
    """Why a ranked row is dropped none of whose answers make a pair."""
    unusable = [
        f"answer {place}: {answer.reason}" for place, answer in enumerate(answers) if isinstance(answer, RowDropped)
    ]
    return RowDropped("no_pair", ", ".join(unusable))


def _notes(texts: RowTexts) -> dict[str, str | None]:
    """Returns the notes of a kept row for the report."""
    return {"second": texts.second or None, "ignored": texts.ignored or None}


def _ended(answer_ids: list[int] | RowDropped, end_id: int | None) -> list[int]:
    """The answer with exactly one end token, its last."""
    if isinstance(answer_ids, RowDropped):
        raise answer_ids
    if end_id is None:
        if not answer_ids:
            raise RowDropped("empty_answer")
        return answer_ids
    if answer_ids[-1:] != [end_id]:
        answer_ids = [*answer_ids, end_id]
    if len(answer_ids) == 1:
        raise RowDropped("empty_answer")
    if answer_ids.count(end_id) > 1:
        raise RowDropped("end_token_inside")
    return answer_ids


def fit_to_length(
    prompt_ids: list[int],
    answers: list[list[int]],
    max_length: int,
    max_prompt_length: int,
    *,
    kept_start: int = 0,
    official: bool = False,
) -> tuple[list[int], list[list[int]]]:
    """Cut a prompt and its answers to `max_length` tokens, if prompt + longest answer exceed it.

    First the prompt is cut to `max_prompt_length` tokens, its first `kept_start` and its last. If that does not
    suffice, all answers are cut to the room behind the prompt that is left; by the `official` rule, that of SimPO's own
    code, to `max_length - max_prompt_length` tokens, though a shorter prompt leaves more room.
    """
    longest = max(map(len, answers))
    if len(prompt_ids) + longest > max_length and len(prompt_ids) > max_prompt_length:
        prompt_ids = prompt_ids[:kept_start] + prompt_ids[len(prompt_ids) - max_prompt_length + kept_start :]
    if len(prompt_ids) + longest > max_length:
        room = max_length - (max_prompt_length if official else len(prompt_ids))
        answers = [answer[:room] for answer in answers]
    return prompt_ids, answers


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose: no warning that a text is longer than the model's window; it is cut later.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens at which a text is divided before anything else, so that the parts may be tokenized apart."""
    if not tokenizer.is_fast:  # what a tokenizer written in Python does around its special tokens is its own affair
        return []
    added = tokenizer.added_tokens_decoder.values()
    return [t.content for t in added if t.special and not (t.lstrip or t.rstrip or t.normalized or t.single_word)]


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts that go on from others, with no space put before their first word.

    Each is tokenized behind an anchor: a special token or, where a space is put even there, an ordinary character. An
    anchor will do with which no token merges, and behind which the ids say the text and nothing else.
    """
    special = _splitting_tokens(tokenizer)[:1]
    found: dict[int, list[int]] = {}
    unproven: dict[int, list[int]] = {}  # of a text that no ids say, as one with a letter that the tokenizer lacks
    for anchor in [*special, *_ANCHORS]:
        start = encode_texts(tokenizer, [anchor])[0]
        left = [i for i in range(len(texts)) if i not in found]
        for i, ids in zip(left, encode_texts(tokenizer, [anchor + texts[i] for i in left]), strict=True):
            if ids[: len(start)] == start:
                said = _said(tokenizer, ids) == _said(tokenizer, start) + texts[i]
                (found if said else unproven)[i] = ids[len(start) :]
    alone = encode_texts(tokenizer, [] if len(found | unproven) == len(texts) else texts)
    return [found[i] if i in found else unproven[i] if i in unproven else alone[i] for i in range(len(texts))]


def _said(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text; those behind it are no part of a prompt."""
    bare = encode_texts(tokenizer, ["a"])[0]
    full = tokenizer(["a"], return_attention_mask=False)["input_ids"][0]
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]
