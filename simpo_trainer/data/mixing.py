"""Several sets of pairs to one: how many rows of each, the same types in all, and a test set carved off."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from datasets import Features, IterableDataset, Json, LargeList, List, Value, concatenate_datasets

from ..errors import SimPOError
from .drops import RowDropped
from .fields import MEDIA_NOTE, RANKINGS, has_ranked_answers
from .formats import FIELDS, split_turns
from .messages import explicit_prompt
from .places import MESSAGES
from .sources import Rows

# What is read of a row that is a whole conversation.
CONVERSATION_FIELDS = ("messages", "tools", "chat_template_kwargs", MEDIA_NOTE)
# Part of the cache's key: raise it with every change of this file that changes rows.
_CODE_VERSION = 2


def exact(number: float) -> Fraction:
    """The number as it is written: 0.29 of 100 rows are 29, not the 28 that binary fractions give."""
    return Fraction(str(number))


def rows_of_fraction(length: int, fraction: float) -> int:
    """Returns the number of rows that a fraction of a set is, rounded down."""
    return int(length * exact(fraction))


def rows_of_shares(lengths: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Returns the number of rows of each set in the largest mixture that has these shares and repeats no row.

    This is the meaning of `fraction` in trl's list of datasets; shares are relative to their sum.
    """
    total = sum(map(exact, shares))
    weights = [exact(share) / total for share in shares]
    size = min(length / weight for length, weight in zip(lengths, weights, strict=True) if weight)
    return [round(weight * size) for weight in weights]


def carve_test(train: Rows, size: float, seed: int) -> tuple[Rows, Rows]:
    """The training rows without the test rows, both in their order, and the test rows.

    Args:
        size: a share of the rows (below 1, rounded up) or their number.
        seed: what the choice depends on; of a stream the first rows are taken instead, as its length is unknown.

    Raises:
        SimPOError: nothing would be left to train on.
    """
    if isinstance(train, IterableDataset):
        return train.skip(int(size)), train.take(int(size))
    count = ceil(len(train) * exact(size)) if size < 1 else int(size)
    if count >= len(train):
        raise SimPOError(
            f"test_split_size {size} takes {count} of {len(train)} pairs, which leaves none to train on. Lower it."
        )
    test = set(random.Random(seed).sample(range(len(train)), count))
    return train.select([i for i in range(len(train)) if i not in test]), train.select(sorted(test))


# --- One schema -------------------------------------------------------------------------------------------------------


def concatenate(sets: Mapping[str, Rows]) -> Rows:
    """The rows of all sets, one set after the other.

    Messages that have other keys than those of another set keep their own; where some sets have an explicit prompt, it
    is made explicit in all.

    Args:
        sets: rows of pairs by the name that messages call them.

    Raises:
        SimPOError: a column is text in one set and messages or numbers in another, or only some sets have a margin,
            ranked answers, or scores of them.
    """
    if len(sets) == 1:
        return next(iter(sets.values()))
    _check_same_rows(sets)
    if "messages" in next(iter(sets.values())).features:
        return _joined(sets, CONVERSATION_FIELDS)
    _check_margins_everywhere(sets)
    for column in ("chosen", "rejected"):
        _check_same_kind(sets, column)
    ranked = has_ranked_answers(next(iter(sets.values())).features)
    if not ranked and len({_prompt_kind(rows) for rows in sets.values()}) > 1:
        sets = {name: _with_explicit_prompt(rows) for name, rows in sets.items()}
    for column in FIELDS:
        if column != "tools":
            _check_same_kind(sets, column)
    return _joined(sets, FIELDS)


def _joined(sets: Mapping[str, Rows], columns: Sequence[str]) -> Rows:
    """The rows of all sets with the types that hold these columns of each."""
    sets = _with_tools_alike(sets)
    common = {column: _common_feature(sets, column) for column in columns}
    return concatenate_datasets([_cast(rows, common) for rows in sets.values()])


def _kind(feature: Any) -> str | None:
    """Returns the content of a type in words; None for a column that is empty in all rows."""
    if isinstance(feature, List | LargeList):
        return {"text": "texts", "number": "numbers"}.get(str(_kind(feature.feature)), "list")
    if isinstance(feature, dict):
        return "object"
    if isinstance(feature, Json):
        return "mixed"
    if feature.dtype == "null":
        return None
    return "text" if feature.dtype in ("string", "large_string") else "number"


_KIND_NAMES = {
    "list": "a list of messages",
    "texts": "a list of texts",
    "numbers": "a list of numbers",
    "object": "an object",
    "mixed": "of several types",
    "text": "text",
    "number": "a number",
}


def _check_same_kind(sets: Mapping[str, Rows], column: str) -> None:
    first: dict[str, str] = {}
    for name, rows in sets.items():
        kind = _kind(rows.features[column]) if column in rows.features else None
        if kind is None or (column == "chat_template_kwargs" and kind in ("object", "mixed")):
            continue
        first.setdefault(kind, name)
    if len(first) < 2:
        return
    (kind, name), (other_kind, other) = list(first.items())[:2]
    raise SimPOError(
        f"Column {column!r} is {_KIND_NAMES[kind]} in {name} and {_KIND_NAMES[other_kind]} in {other}; sources that "
        "are mixed must agree. Write both the same way, by `columns` or by converting one, or train on one of them."
    )


def _check_same_rows(sets: Mapping[str, Rows]) -> None:
    """Refuses pairs beside ranked answers or whole conversations, and scores beside ranks."""
    kinds: dict[str, str] = {}
    for name, rows in sets.items():
        ranking = next((column for column in RANKINGS if column in rows.features), None)
        kind = f"ranked answers with {ranking}" if has_ranked_answers(rows.features) else "pairs"
        kind = "rows of messages" if "messages" in rows.features else kind
        kinds.setdefault(kind, name)
    if len(kinds) < 2:
        return
    (kind, name), (other_kind, other) = list(kinds.items())[:2]
    raise SimPOError(
        f"{name} has {kind} and {other} has {other_kind}; sources that are mixed must hold rows of one kind. Convert "
        "one of them (a pair is a row with two responses and the scores 1 and 0), or train on one of them."
    )


def _check_margins_everywhere(sets: Mapping[str, Rows]) -> None:
    having = [name for name, rows in sets.items() if "margin" in rows.features]
    lacking = [name for name in sets if name not in having]
    if having and lacking:
        raise SimPOError(
            f"{having[0]} has a column 'margin' and {lacking[0]} has none; a mixture needs a margin in every row or in "
            "none. Add the column there (0 for no extra margin), or remove it here."
        )


def _prompt_kind(rows: Rows) -> str:
    """Where the prompt of a set is: in its column, in both answers, or in both beside a text that repeats it."""
    if "prompt" not in rows.features:
        return "implicit"
    is_text = _kind(rows.features["prompt"]) == "text"
    return "repeated" if is_text and _kind(rows.features["chosen"]) == "list" else "explicit"


def _with_explicit_prompt(rows: Rows) -> Rows:
    if _prompt_kind(rows) == "explicit":
        return rows
    feature = Value("string") if _kind(rows.features["chosen"]) == "text" else MESSAGES
    features = Features(dict(rows.features) | dict.fromkeys(("prompt", "chosen", "rejected"), feature))
    return rows.map(_ExplicitPrompt(), features=features)


@dataclass(frozen=True)
class _ExplicitPrompt:
    """The function that `map` runs; its field is part of the cache's key."""

    version: int = _CODE_VERSION

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            fields = explicit_prompt(row)
        except RowDropped as dropped:
            if dropped.reason == "identical_answers" and isinstance(row["chosen"], list):
                fields = split_turns(row["chosen"], row["rejected"])
            elif dropped.reason == "identical_answers":
                fields = "", row["chosen"], row["rejected"]
            else:  # tokenization drops the row again, for a missing field
                fields = None, row["chosen"], row["rejected"]
        return dict(zip(("prompt", "chosen", "rejected"), fields, strict=True))


def _with_tools_alike(sets: Mapping[str, Rows]) -> Mapping[str, Rows]:
    """Tools as JSON text in all sets, where their types differ: a common type would add keys to each tool."""
    types = [rows.features["tools"] for rows in sets.values() if "tools" in rows.features]
    if all(feature == types[0] for feature in types):
        return sets
    return {
        name: rows.map(_ToolsAsText(), features=Features(dict(rows.features) | {"tools": Value("string")}))
        if "tools" in rows.features and _kind(rows.features["tools"]) != "text"
        else rows
        for name, rows in sets.items()
    }


@dataclass(frozen=True)
class _ToolsAsText:
    """The function that `map` runs; its field is part of the cache's key."""

    version: int = _CODE_VERSION

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        tools = row["tools"]
        return {"tools": None if tools is None else json.dumps(tools, ensure_ascii=False)}


def _common_feature(sets: Mapping[str, Rows], column: str) -> Any:
    """The type that holds a column of all sets; None where none has it."""
    there = [rows.features[column] for rows in sets.values() if column in rows.features]
    features = [feature for feature in there if _kind(feature) is not None] or there
    if not features or all(feature == features[0] for feature in features):
        return features[0] if features else None
    kinds = {"text": Value("string"), "number": Value("float64"), "list": MESSAGES}
    kinds |= {"texts": List(Value("string")), "numbers": List(Value("float64"))}
    return kinds.get(str(_kind(features[0])), Json())


def _cast(rows: Rows, common: Mapping[str, Any]) -> Rows:
    """The rows with the common types; a stream also with the columns it lacks, which tables get by themselves."""
    features = Features({column: common[column] for column in rows.features})
    rows = rows if features == rows.features else rows.cast(features)
    lacking = tuple(column for column, feature in common.items() if feature is not None and column not in features)
    if not lacking or not isinstance(rows, IterableDataset):
        return rows
    return rows.map(_Nulls(lacking), features=Features(features | {column: common[column] for column in lacking}))


@dataclass(frozen=True)
class _Nulls:
    """The function that `map` runs: columns without a value."""

    columns: tuple[str, ...]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return dict.fromkeys(self.columns)
