"""Published ways to write two answers and a verdict: certain ones are read, others refused with what to write."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import SimPOError
from ..log import get_logger
from .places import SAMPLE
from .recognition import HIDDEN_PROMPTS
from .sources import Rows
from .verdicts import SIGNS, plain, roots

logger = get_logger(__name__)

# Sets whose own column names tell which answer a value means, and what `columns` says of them.
_LAYOUTS: tuple[dict[str, Any], ...] = (
    {  # HelpSteer3
        "prompt": "context",
        "answers": {"negative": "response1", "positive": "response2"},
        "better": "overall_preference",
    },
    {"prompt": "prompt", "answers": {0: "response_0", 1: "response_1"}, "better": "better_response_id"},  # SafeRLHF
    {"answers": {"model_a": "conversation_a", "model_b": "conversation_b"}, "better": "winner"},  # Chatbot Arena
    {"prompt": "prompt", "answers": {"winner_model_a": "response_a", "winner_model_b": "response_b"}},  # the 55k
    {"prompt": "history", "answers": {1: "human_ref_A", 0: "human_ref_B"}, "better": "labels"},  # SHP
)
# A set with it beside a layout says two things of its answers, and the user chooses between them.
_SECOND_VERDICTS = ("safer_response_id",)
_ANSWERS = re.compile(
    r"(response|answer|completion|output|conversation|generation|reply|candidate|summary|continuation|text|human_ref)"
    r"s?(_?)(a|b|0|1|2)",
    re.IGNORECASE,
)
_SUFFIXES = (("a", "b"), ("0", "1"), ("1", "2"))
_VERDICTS = (
    *("better_response_id", "safer_response_id", "better_response", "better", "best", "overall_preference"),
    *("preference", "preference_strength", "preferred", "preferred_response", "winner", "choice", "label", "labels"),
)
_OWN = ("chosen", "rejected", "responses")


def completed(rows: Rows, columns: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Returns `columns` as this set is read: as given, or what a published way to write verdicts needs.

    Of `columns` with `answers`, a set that has none of the columns named is read as without them: a mixture may have
    such verdicts in one of its sources.

    Raises:
        SimPOError: there are two answers, and nothing certain that says which is better.
    """
    features = rows.features
    given = dict(columns or {})
    if "answers" in given:
        theirs = roots({str(place): path for place, path in enumerate(given["answers"].values()) if path})
        is_read_otherwise = features.keys() & {*_OWN} or _layout(features) or _answer_pair(features)
        if features.keys() & theirs or not is_read_otherwise:
            return given
        logger.warning(f"{name}: has none of the columns that `answers` names, and is read without `columns`.")
        given = {}
    if given.keys() & {*_OWN} or features.keys() & {*_OWN}:
        return given
    layout = _layout(features)
    if layout and not _second_verdicts(features):
        logger.info(f"{name}: read by {spelled(layout)}.")
        return layout | given
    refuse_verdicts(rows, name, given)
    return given


def refuse_verdicts(
    rows: Rows, name: str, columns: Mapping[str, Any] | None = None, *, is_handed_over: bool = False
) -> None:
    """Refuses two answers without `chosen`, and says how to write which of them is the better.

    Args:
        columns: what is already said of the rows.
        is_handed_over: whether a program hands the rows over, which no recipe describes.

    Raises:
        SimPOError: the rows are such.
    """
    features: Mapping[str, Any] = rows.features or dict.fromkeys(next(iter(rows), {}))
    layout = _layout(features) if is_handed_over and not _second_verdicts(features) else None
    pair = _answer_pair(features)
    if features.keys() & {*_OWN} or not (layout or pair):
        return
    if layout:
        ways = [layout]
        found = "They are rows of a published set"
    else:
        assert pair is not None
        start = dict(columns or {}) | _named_prompt(features, columns or {})
        verdicts = [column for column in _VERDICTS if column in {key.lower() for key in features}]
        verdicts = [column for column in features if column.lower() in verdicts]
        sample = list(rows.with_format(None).take(SAMPLE))
        ways = [start | way for column in verdicts for way in _ways(pair, column, sample)]
        ways = ways or [start | {"answers": {"VALUE": pair[0], "OTHER": pair[1]}, "better": "COLUMN"}]
        found = "; ".join(f"{column!r} holds {_shown(column, sample)}" for column in verdicts)
        found = found or (
            "No column is known to say which is better; name it, and its values, or name 'chosen' and 'rejected' by "
            "`columns` if one is always the better"
        )
    lines = "".join(f"\n  {spelled(way)}" for way in ways)
    one_of = "this" if len(ways) == 1 else "the one of these that the set's description says is right"
    there = " and ".join(map(repr, pair)) if pair else "of a published set"
    wanted = f"In a recipe, write {one_of} (`answers` has the better answer for each value):"
    python = (
        f"\nIn Python, `simpo_trainer.data.formats.to_pairs(rows, columns, None, {name!r})` reads them, with such "
        "`columns` as a dict, or write the columns 'chosen' and 'rejected' yourself."
    )
    raise SimPOError(
        f"{name}: there are two answers, {there}, and no column 'chosen'. {found}. {wanted}{lines}"
        + (python if is_handed_over else "")
    )


def spelled(columns: Mapping[str, Any]) -> str:
    """Returns `columns` as one line of a recipe."""
    fields = [
        f"{field}: {{{', '.join(f'{key}: {_null(path)}' for key, path in place.items())}}}"
        if isinstance(place, Mapping)
        else f"{field}: {place}"
        for field, place in columns.items()
    ]
    return f"columns: {{{', '.join(fields)}}}"


def _null(path: str | None) -> str:
    return "null" if path is None else path


def _layout(features: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((layout for layout in _LAYOUTS if roots(layout) <= features.keys()), None)


def _second_verdicts(features: Mapping[str, Any]) -> list[str]:
    return [column for column in _SECOND_VERDICTS if column in features]


def _answer_pair(features: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of two answers, which differ in what stands behind their name; None without such."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for column in features:
        if match := _ANSWERS.fullmatch(column):
            found.setdefault((match[1].lower(), match[2]), {})[match[3].lower()] = column
    for columns in found.values():
        for first, second in _SUFFIXES:
            if set(columns) == {first, second}:
                return columns[first], columns[second]
    return None


def _named_prompt(features: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, str]:
    if "prompt" in features or "prompt" in columns:
        return {}
    likely = [column for column in HIDDEN_PROMPTS if column in features]
    return {"prompt": likely[0]} if likely else {}


def _ways(pair: tuple[str, str], column: str, sample: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the `columns` that fit a verdict with such values; more than one where both directions are in use."""
    first, second = pair
    values = {value for row in sample if (value := plain(row.get(column))) is not None}
    numbers = {value for value in values if isinstance(value, float)}
    if numbers and numbers == values:
        if min(numbers) < 0:
            return [
                {"answers": dict(zip(SIGNS, answers, strict=True)), "better": column}
                for answers in (pair, (second, first))
            ]
        if numbers <= {0, 1}:
            ways = [{0: first, 1: second}, {1: first, 0: second}]
            is_number_of_one = column.lower().endswith(("_id", "_index", "_idx"))
            return [{"answers": way, "better": column} for way in ways[: 1 if is_number_of_one else 2]]
        if numbers == {1, 2}:
            return [{"answers": {1: first, 2: second}, "better": column}]
    texts = sorted({str(row[column]) for row in sample if isinstance(plain(row.get(column)), str)})
    meant = {text: answer for text in texts for answer in pair if text.lower()[-1:] == answer.lower()[-1:]}
    if set(meant.values()) == {first, second} and len(meant) == 2:
        return [{"answers": meant, "better": column}]
    return [{"answers": {"VALUE": first, "OTHER": second}, "better": column}]


def _shown(column: str, sample: list[dict[str, Any]]) -> str:
    seen = list(dict.fromkeys(repr(row.get(column)) for row in sample))
    return ", ".join(sorted(seen)[:8]) + (", ..." if len(seen) > 8 else "")
