"""The place of a field in rows: a column, or a path into one with dots.

A number counts in a list; a key applied to a list of objects takes what stands there in each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Json, LargeList, List, Value

from ..errors import SimPOError, did_you_mean
from .sources import Rows

# Rows that show the types of data that states none.
SAMPLE = 100
# Objects, so that a message keeps exactly the keys it has; a struct would give every message the keys of all.
MESSAGES = List(Json())


@dataclass(frozen=True)
class Place:
    """The place of a field: a column, the keys and numbers that lead on from there, and the type of the value there."""

    steps: tuple[str, ...]
    feature: Any


def find_place(rows: Rows, path: str, field: str, name: str) -> Place:
    """The place that `path` names; a column whose name has dots comes before a path of that spelling."""
    features, parts = rows.features, path.split(".")
    for end in range(len(parts), 0, -1):
        if (column := ".".join(parts[:end])) in features:
            return _follow(rows, [column, *parts[end:]], field, name)
    raise _no_place(name, field, path, "there is no column", parts[0], list(features))


def _follow(rows: Rows, steps: list[str], field: str, name: str) -> Place:
    feature, lists = rows.features[steps[0]], []
    for depth, step in enumerate(steps[1:], start=1):
        there = _keys(feature)
        while isinstance(feature, List | LargeList) and not step.isdecimal():
            lists.append(type(feature))
            feature = feature.feature
        if isinstance(feature, Json):
            return Place(tuple(steps), _sampled_feature(rows, steps, field, name))
        if isinstance(feature, dict) and step in feature:
            feature = feature[step]
        elif isinstance(feature, List | LargeList):
            feature = feature.feature
        else:
            where = ".".join(steps[:depth])
            raise _no_place(name, field, ".".join(steps), f"{where!r} has no", step, there)
    for kind in reversed(lists):
        feature = kind(feature)
    return Place(tuple(steps), feature)


def _keys(feature: Any) -> list[str]:
    """The steps that lead on from what has this type."""
    if isinstance(feature, List | LargeList):
        return ["0", "1", "...", *(_keys(feature.feature) if isinstance(feature.feature, dict) else [])]
    return list(feature) if isinstance(feature, dict) else []


def _sampled_feature(rows: Rows, steps: list[str], field: str, name: str) -> Any:
    """The type of what stands at a place inside objects of any keys, from the first rows."""
    sample = list(rows.with_format(None).take(SAMPLE))
    values = [value for row in sample if _says_something(value := value_at(row, tuple(steps)))]
    if not values:
        keys = sorted({key for row in sample for key in _keys_at(row, tuple(steps[:-1]))})
        raise _no_place(name, field, ".".join(steps), f"the first {len(sample)} rows have no", steps[-1], keys)
    if all(isinstance(value, list) for value in values):
        inside = _type_of([item for value in values for item in value if item is not None])
        return List(inside) if isinstance(inside, Value) else MESSAGES
    return _type_of(values)


def _type_of(values: list[Any]) -> Any:
    """The type of values that are all text or all numbers, or else objects of any kind."""
    for kind, feature in ((str, Value("string")), (int | float, Value("float64"))):
        if values and all(isinstance(value, kind) for value in values):
            return feature
    return Json()


def _says_something(value: Any) -> bool:
    """Returns whether there is a value at a place; a key that no item has gives a list of nulls."""
    return any(item is not None for item in value) if isinstance(value, list) and value else value is not None


def _keys_at(row: Any, steps: tuple[str, ...]) -> list[str]:
    value = value_at(row, steps)
    items = value if isinstance(value, list) else [value]
    return [key for item in items if isinstance(item, dict) for key in item]


def value_at(value: Any, steps: tuple[str, ...]) -> Any:
    """Returns the value at a place in a row; None where the row, or an item of one of its lists, ends before it."""
    for depth, step in enumerate(steps):
        if isinstance(value, list) and not step.isdecimal():
            return [value_at(item, steps[depth:]) for item in value]
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _no_place(name: str, field: str, path: str, what: str, step: str, there: list[str]) -> SimPOError:
    return SimPOError(
        f"{name}: `columns` takes {field!r} from {path!r}, but {what} {step!r}; there is "
        f"{', '.join(map(repr, there)) or 'nothing to name'}.{did_you_mean(step, there, 1)} Correct `columns`."
    )
