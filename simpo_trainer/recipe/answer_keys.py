"""The sections `generate`, `annotate` and `iterate` of a recipe: the settings of the verbs of these names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

from ..data.ranking import PairChoice
from ..errors import SimPOError, did_you_mean
from ..knobs import knob, knob_problems
from ..value_types import convert, needed
from .file import scalar

# The paper's, one for each answer.
SEEDS = (13, 21, 42, 79, 100)
# Further seeds are those before them and this much more.
_STEP = 101


@dataclass
class AnswerKeys:
    """The keys of a recipe for the verbs of on-policy data; `simpo train` does not read them."""

    generate: dict[str, Any] | None = knob(None, "Settings of `simpo generate`, see its --help.", changes_result=False)
    annotate: dict[str, Any] | None = knob(None, "Settings of `simpo annotate`, see its --help.", changes_result=False)
    iterate: dict[str, Any] | None = knob(None, "Settings of `simpo iterate`, see its --help.", changes_result=False)


@dataclass
class GenerateSettings:
    """Settings of `simpo generate`."""

    output: str | None = knob(
        None,
        "File of the answers, ending in .jsonl or .parquet. Unset means a name made of output_dir and a hash of all "
        "that decides the answers.",
    )
    num_answers: int | None = knob(
        None,
        "Answers to each prompt. Unset means one for each seed.",
        lambda x: x >= 1,
        "it must be 1 or more.",
    )
    temperature: float = knob(
        0.8,
        "Sampling temperature; 0 takes the likeliest token at each step.",
        lambda x: 0 <= x < math.inf,
        "it must be a number, 0 or above.",
    )
    top_p: float = knob(
        0.95,
        "Sample from the likeliest tokens whose probabilities sum up to this.",
        lambda x: 0 < x <= 1,
        "it must be above 0 and at most 1.",
    )
    max_new_tokens: int = knob(
        4096, "Longest answer, in tokens, its end token included.", lambda x: x >= 1, "it must be 1 or more."
    )
    seeds: list[int] | None = knob(
        None,
        "A seed for each answer to a prompt. Unset means 13, 21, 42, 79, 100; further answers take these plus 101, "
        "plus 202, and so on.",
        lambda x: len(x) >= 1 and len(set(x)) == len(x),
        "it must be a list of different whole numbers.",
    )
    engine: Literal["transformers", "vllm", "server"] | None = knob(
        None,
        "What runs the model: transformers, vllm, or a server. Unset means the server where one is given, else vLLM "
        "where it is installed and sees an accelerator, else transformers.",
    )
    batch_size: int = knob(
        32,
        "Answers that transformers generates at once, rounded down to whole prompts, at least one.",
        lambda x: x >= 1,
        "it must be 1 or more.",
    )
    server: str | None = knob(
        None, "Address of an OpenAI-compatible server, such as http://localhost:8000/v1, which samples the answers."
    )
    server_model: str | None = knob(
        None, "Name of the model at the server. Unset means model_name_or_path of the recipe."
    )
    server_key_variable: str = knob("OPENAI_API_KEY", "Environment variable that holds the server's key, if it is set.")
    server_requests: int = knob(16, "Requests that are under way at once.", lambda x: x >= 1, "it must be 1 or more.")

    @property
    def used_seeds(self) -> list[int]:
        """Returns the seed of each answer to a prompt."""
        used = list(self.seeds or SEEDS)
        given = len(used)
        count = self.num_answers or given
        while len(used) < count:
            seed = used[-given] + _STEP
            while seed in used:
                seed += 1
            used.append(seed)
        return used[:count]


@dataclass
class AnnotateSettings:
    """Settings of `simpo annotate`."""

    output: str | None = knob(
        None,
        "File of the rows to train on, ending in .jsonl or .parquet. Unset means a name made of that of the answers "
        "and a hash of these settings.",
    )
    score: str | None = knob(
        None,
        "A Python function, as my_rules.score or my_rules.py:score, called with prompt (messages), answer (text) and "
        "row (all columns), which returns a number: the higher, the better.",
    )
    reward_model: str | None = knob(
        None,
        "A reward model, a folder or a name of the Hub: one for sequence classification, or one whose own code gives "
        "a `score`.",
    )
    reward_revision: str | None = knob(None, "Branch, tag or commit of the reward model on the Hub.")
    trust_remote_code: str | None = knob(
        None,
        "Name of the reward model again, to run the code that comes with it; reward_revision must then be a commit.",
    )
    ranker: str | None = knob(
        None, "A model that compares two answers, such as llm-blender/PairRM; needs the package llm-blender."
    )
    server: str | None = knob(None, "Address of a server with a reward model, which has the route /pooling of vLLM.")
    server_model: str | None = knob(None, "Name of the reward model at the server. Unset means its first one.")
    server_key_variable: str = knob("OPENAI_API_KEY", "Environment variable that holds the server's key, if it is set.")
    server_requests: int = knob(16, "Requests that are under way at once.", lambda x: x >= 1, "it must be 1 or more.")
    batch_size: int = knob(16, "Answers that a reward model reads at once.", lambda x: x >= 1, "it must be 1 or more.")
    max_length: int | None = knob(
        None,
        "Longest prompt + answer that a reward model reads, in tokens; longer ones are not scored. Unset means the "
        "positions that it has.",
        lambda x: x >= 2,
        "it must be 2 or more.",
    )
    pairs: PairChoice | Literal["ranked", "none"] = knob(
        "best_worst",
        "Rows to train on: the best and the worst answer of a prompt (best_worst), every two of different scores "
        "(all), each and the next lower one (adjacent), or all answers with their scores in one row (ranked); or none: "
        "the output has the answers with their scores.",
    )
    least_gap: float = knob(
        0.0,
        "Least difference of the scores of a pair; of a ranked row, between its best and its worst answer.",
        lambda x: 0 <= x < math.inf,
        "it must be a number, 0 or above.",
    )
    decontaminate: list[str] | None = knob(
        None,
        "Evaluation sets, files or names on the Hub: prompts that share a run of decontaminate_words words with a row "
        "of one of them are left out, and listed.",
    )
    decontaminate_words: int = knob(
        8, "Words of such a run; shorter texts are compared whole.", lambda x: x >= 1, "it must be 1 or more."
    )


@dataclass
class IterateSettings:
    """Settings of `simpo iterate`."""

    rounds: int = knob(
        3,
        "Rounds of answers, scores and training, each from the model of the one before.",
        lambda x: x >= 1,
        "it must be 1 or more.",
    )
    patience: int = knob(
        1,
        "Rounds in a row with a held-out score below the best so far, after which no other is begun.",
        lambda x: x >= 1,
        "it must be 1 or more.",
    )


SECTIONS: dict[str, type] = {"generate": GenerateSettings, "annotate": AnnotateSettings, "iterate": IterateSettings}
Settings = TypeVar("Settings", GenerateSettings, AnnotateSettings, IterateSettings)


def section_keys(owner: type) -> list[str]:
    """Returns the names of the settings of a section."""
    return [each.name for each in fields(owner)]


def read_section(owner: type[Settings], section: Mapping[str, Any], words: Mapping[str, str] | None = None) -> Settings:
    """Returns the settings of a verb.

    Args:
        owner: their class.
        section: the values in the recipe.
        words: values from the command line, as text; they replace the recipe's.

    Raises:
        SimPOError: a name or a value is wrong; one message names all problems.
    """
    settings, problems = _read(owner, section, words or {})
    if problems:
        raise SimPOError("\n".join(problems))
    return settings


def section_problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each problem with the sections of a recipe."""
    return [
        f"{name}: {problem}"
        for name, owner in SECTIONS.items()
        for problem in _read(owner, values.get(name) or {}, {})[1]
    ]


def _read(owner: type, section: Mapping[str, Any], words: Mapping[str, str]) -> tuple[Any, list[str]]:
    hints, known = get_type_hints(owner), section_keys(owner)
    values: dict[str, Any] = {}
    problems = []
    given: dict[str, tuple[Any, str | None]] = {name: (value, None) for name, value in section.items()}
    given |= {name: (scalar(text), text) for name, text in words.items()}
    for name, (value, text) in given.items():
        if name not in known:
            meant = did_you_mean(str(name), known, 1) or f" It has {', '.join(known)}."
            problems.append(f"unknown key {name}.{meant}")
            continue
        try:
            values[name] = convert(value, hints[name], text)
        except ValueError:
            problems.append(f"{name} is {value!r}; it must be {needed(hints[name], value)}.")
    settings = owner(**values)
    return settings, problems + ([] if problems else knob_problems(owner, settings))
