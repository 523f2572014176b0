"""Two answers and a sign, a number, a name or two scores that tell the better one, to `chosen` and `rejected`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Features, IterableDataset, Json, LargeList, List, Value

from ..errors import SimPOError
from .drops import RowDropped
from .fields import TIE_NOTE
from .messages import Message, split_common_messages
from .places import MESSAGES, SAMPLE, Place, find_place, value_at
from .ranking import as_number
from .recognition import is_text
from .sources import Rows
from .turns import parsed

# Part of the cache's key: raise it with every change of this file that changes rows.
_CODE_VERSION = 1
# Keys of `answers` that stand for all numbers below or above 0; 0 itself is a tie beside them.
SIGNS = ("negative", "positive")
# Values by which published sets say that neither answer is better; others are told by null in `answers`.
_TIES = ("tie", "tie (bothbad)", "both_bad")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_SCALED = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(\S.*?)\s*")


def plain(value: Any) -> float | str | None:
    """Returns a value as it is compared: a number, or a text in small letters; None for what says nothing."""
    if isinstance(value, bool | int | float):
        return None if math.isnan(value) else float(value)
    if not isinstance(value, str):
        return None if value is None else str(value)
    text = value.strip().casefold()
    number = as_number(text)
    return _WORDS.get(text, (text or None) if number is None else number)


def scaled(path: str) -> tuple[float, str] | None:
    """Returns the factor and the place of a margin written as `0.5 * place`; None where it is written otherwise."""
    found = _SCALED.fullmatch(path)
    return (float(found[1]), found[2]) if found else None


def roots(columns: Mapping[str, Any]) -> set[str]:
    """Returns the columns that hold the places in `columns`, for a path with dots the whole of it and its beginning."""
    paths = [path for field, path in columns.items() if field != "answers"]
    if answers := columns.get("answers"):
        paths += [path for path in answers.values() if path]
        paths += [] if "better" in columns else [str(key) for key in answers]
    named = [scale[1] if (scale := scaled(path)) else path for path in paths]
    return {*named, *(path.split(".")[0] for path in named)}


def with_better_first(rows: Rows, columns: Mapping[str, Any], name: str) -> tuple[Rows, dict[str, str]]:
    """Returns the rows with the better answer as `chosen`, the other as `rejected`, and the fields still to be read.

    Args:
        columns: field to its place; `answers` holds the place of an answer by the value of `better` that says it is
            the better one, null for a tie; or, without `better`, by the place of its score.
        name: what messages call the set.

    Raises:
        SimPOError: a place in `columns` does not exist; or, where the rows are read, a value is not in `answers`.
    """
    left: dict[str, str] = {field: path for field, path in columns.items() if field not in ("answers", "better")}
    if "answers" not in columns:
        if (path := left.get("margin")) and path not in rows.features and scaled(path):
            raise SimPOError(
                f"{name}: `columns` takes the margin from {path!r}; a factor is read only beside `answers`. Write the "
                "place alone, or set `answers`."
            )
        return rows, left
    given: Mapping[Any, str | None] = columns["answers"]
    paths = list(dict.fromkeys(path for path in given.values() if path))
    better = [columns["better"]] if "better" in columns else [str(key) for key in given]
    answers = [find_place(rows, path, "answers", name) for path in paths]
    verdicts = [find_place(rows, path, "better" if "better" in columns else "answers", name) for path in better]
    prompt = _prompt(rows, left, name)
    is_listed = prompt is not None and _are_texts_of_turns(rows, [prompt, *answers])
    are_texts = all(is_text(place.feature) for place in answers)
    is_wrapped = are_texts and not is_listed and prompt is not None and _is_list(prompt.feature)
    feature = MESSAGES if is_listed or is_wrapped else _common_feature(answers)
    made: dict[str, Any] = {"chosen": feature, "rejected": feature, TIE_NOTE: Value("string")}
    if is_listed:
        made["prompt"] = MESSAGES
        left.pop("prompt", None)
    margin = _margin(rows, left, better, name)
    if margin is not None:
        made["margin"] = Value("float64")
        left.pop("margin")
    work = _BetterFirst(
        values=tuple((plain(key), paths.index(path) if path else None) for key, path in given.items()),
        answers=tuple(place.steps for place in answers),
        verdicts=tuple(place.steps for place in verdicts),
        prompt=prompt.steps if is_listed and prompt else None,
        is_wrapped=is_wrapped,
        margin=margin,
        made=tuple(made),
        name=name,
    )
    done = {place.steps[0] for place in (*answers, *verdicts)} | {"responses", "scores", "ranks"}
    kept = {*made, *roots(left), "prompt", "margin", "tools", "chat_template_kwargs", "system"}
    done = (done & set(rows.features)) - kept
    features = Features({field: kind for field, kind in rows.features.items() if field not in done} | made)
    rows = rows.with_format(None)
    options: dict[str, Any] = {} if isinstance(rows, IterableDataset) else {"desc": f"Reading {name}"}
    rows = rows.map(work, batched=True, with_indices=True, remove_columns=sorted(done), features=features, **options)
    return rows, left


def _prompt(rows: Rows, left: Mapping[str, str], name: str) -> Place | None:
    if "prompt" in left:
        return find_place(rows, left["prompt"], "prompt", name)
    return Place(("prompt",), rows.features["prompt"]) if "prompt" in rows.features else None


def _margin(
    rows: Rows, left: Mapping[str, str], better: list[str], name: str
) -> tuple[float, tuple[str, ...], bool] | None:
    """Factor, place and whether the sign is left out, of a margin that is not read as it stands."""
    path = left.get("margin")
    if path is None or path in rows.features:
        scale = None if path is None or path not in better else (1.0, path)
    else:
        scale = scaled(path) or ((1.0, path) if path in better else None)
    if scale is None:
        return None
    factor, path = scale
    return factor, find_place(rows, path, "margin", name).steps, path in better


def _is_list(feature: Any) -> bool:
    return isinstance(feature, List | LargeList | Json)


def _common_feature(answers: list[Place]) -> Any:
    """The type of both answers."""
    first, second = (place.feature for place in answers)
    if is_text(first) and is_text(second):
        return Value("string")
    if first == second:
        return first
    return MESSAGES if isinstance(first, List) and isinstance(second, List) else Json()


def _are_texts_of_turns(rows: Rows, places: list[Place]) -> bool:
    """Returns whether prompt and answers are each a list of what was said in turn, or such a list as JSON text."""
    sample = list(rows.with_format(None).take(SAMPLE))
    values = [value_at(row, place.steps) for row in sample for place in places]
    lists = [parsed(value) for value in values if value is not None]
    return 2 * sum(map(_is_of_texts, lists)) > len(lists)


def _is_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(item is None or isinstance(item, str) for item in value)


@dataclass(frozen=True)
class _BetterFirst:
    """The function that `map` runs; all it needs is in its fields, which make the cache's key."""

    values: tuple[tuple[float | str | None, int | None], ...]
    answers: tuple[tuple[str, ...], ...]
    verdicts: tuple[tuple[str, ...], ...]
    prompt: tuple[str, ...] | None
    is_wrapped: bool
    margin: tuple[float, tuple[str, ...], bool] | None
    made: tuple[str, ...]
    name: str
    version: int = _CODE_VERSION

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        columns: dict[str, list] = {field: [] for field in self.made}
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            made = self._made(dict(zip(batch, values, strict=True)), index)
            for field, column in columns.items():
                column.append(made.get(field))
        return columns

    def _made(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        verdicts = [value_at(row, steps) for steps in self.verdicts]
        if any(plain(value) is None for value in verdicts):
            return {"margin": 0.0}  # tokenization drops the row, for a missing field
        better = self._better(verdicts, index)
        answers = [value_at(row, steps) for steps in self.answers]
        fields: dict[str, Any] = {}
        if self.prompt is not None:
            prompt, *answers = _spoken(value_at(row, self.prompt), answers)
            fields["prompt"] = prompt
        elif self.is_wrapped:
            answers = [[{"role": "assistant", "content": text}] if isinstance(text, str) else text for text in answers]
        if better is None:
            told = " and ".join(str(value) for value in verdicts)
            return fields | {"chosen": answers[0], "rejected": answers[1], TIE_NOTE: told, "margin": 0.0}
        return fields | {
            "chosen": answers[better],
            "rejected": answers[1 - better],
            "margin": self._margin_of(row, index),
        }

    def _better(self, given: list[Any], index: int) -> int | None:
        """The place of the better answer; None for a tie."""
        found = [plain(value) for value in given]
        if len(found) == 2:
            for value, number in zip(given, found, strict=True):
                if not isinstance(number, float):
                    raise self._unknown(index, value, "which is no number")
            return None if found[0] == found[1] else int(found[0] < found[1])  # type: ignore[operator]
        [value] = found
        known = dict(self.values)
        if value in known:
            return known[value]
        if isinstance(value, float) and set(SIGNS) <= known.keys():
            return None if value == 0 else known[SIGNS[value > 0]]
        if value in _TIES:
            return None
        there = ", ".join(f"{key:g}" if isinstance(key, float) else str(key) for key in known)
        raise self._unknown(index, given[0], f"which is not in `answers`; there is {there}")

    def _unknown(self, index: int, value: Any, why: str) -> SimPOError:
        columns = " or ".join(repr(".".join(steps)) for steps in self.verdicts)
        return SimPOError(
            f"{self.name}: row {index} has {value!r} in {columns}, {why}. Correct `answers` of `columns`: a value has "
            "the answer that it says is better, or null where it says that neither is."
        )

    def _margin_of(self, row: Mapping[str, Any], index: int) -> float | None:
        if self.margin is None:
            return None
        factor, steps, is_size = self.margin
        value = value_at(row, steps)
        number = as_number(value)
        if number is None:
            raise SimPOError(
                f"{self.name}: row {index} has {value!r} in {'.'.join(steps)!r}, which `columns` takes the margin "
                "from; it must be a number. Correct it, or remove `margin`."
            )
        return factor * (abs(number) if is_size else number)


def _spoken(prompt: Any, answers: list[Any]) -> tuple[Any, Any, Any]:
    """Prompt, first and second answer as messages, of what the user said in turn and what each side said to it.

    What cannot be read is a list of text, and what is missing None, for which tokenization drops the row.
    """
    asked, *said = (parsed(value) for value in (prompt, *answers))
    if asked is None or None in said:
        return None, None, None
    if not all(map(_is_of_texts, (asked, *said))) or {len(asked)} != {len(side) for side in said}:
        return ([str(prompt)], [str(answers[0])], [str(answers[1])])
    whole = [[message for turn in zip(asked, side, strict=True) for message in _turn(*turn)] for side in said]
    try:
        return split_common_messages(*whole)
    except RowDropped:  # both are the same, which tokenization finds again
        return whole[0][:-1], whole[0][-1:], whole[1][-1:]


def _turn(asked: str | None, said: str | None) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
