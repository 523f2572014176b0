"""JSON files read such that each value keeps its type: the loader of `datasets` rewrites those unlike the first ones.

It takes the types of all rows from the first 10 MB and turns what comes later into them in silence: where one row has
a number for a text, all texts of its block become JSON text, in quotes; and objects, numbers and dates become text.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from datasets import (
    DatasetDict,
    Features,
    IterableDatasetDict,
    Json,
    LargeList,
    List,
    Value,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.json.json import Json as JsonBuilder
from datasets.utils.json import ujson_loads

from .stream_files import note_files
from .watched import BadRow, prepare_without_bad_rows, watch

# Where a value stands: a column and the keys that lead on from there, 0 for the items of a list.
_Steps: TypeAlias = tuple[str | int, ...]

# Bytes of a JSON file, or rows of a CSV, that are read at once where the types of the beginning do not hold.
_WHOLE = 1 << 30
# What the loader does anyway. Saying so keeps it from tables that it wrote to its cache without the check.
_CHECKED = {"encoding_errors": "strict"}


class OtherType(ValueError):
    """Values of another type than the first ones.

    `features` are types that hold both. `is_time` says that they may be texts that only the loader takes for dates.
    """

    def __init__(self, message: str, features: Features, is_time: bool) -> None:
        super().__init__(message)
        self.features = features
        self.is_time = is_time


# --- Loading ----------------------------------------------------------------------------------------------------------


def load_checked(
    where: str, config: str | None, *, streaming: bool, on_bad_row: BadRow | None = None, **options: Any
) -> Any:
    """Like `load_dataset`, but values of JSON files are never turned into another type.

    Args:
        on_bad_row: "drop" leaves out rows that cannot be read, which is said each time.

    Raises:
        DatasetGenerationError: the files cannot be read; its cause is an `OtherType` where types differ.
        SimPOError: a stream comes to a row that cannot be read, or to a file that is not as it was.
    """
    if on_bad_row == "drop":  # kept apart from what is read of whole files
        options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "without_bad_rows")
    builder = load_dataset_builder(where, config, **options)
    cast = None
    if isinstance(builder, JsonBuilder):
        builder = load_dataset_builder(where, config, **_CHECKED, **options)
        # The only place where the types of a block are seen before they are lost.
        builder._cast_table = cast = _CheckedCast(builder, "features" not in options and _has_stated_types(builder))
    if streaming or on_bad_row == "drop":
        watch(builder, is_stream=streaming, on_bad_row=on_bad_row)
    if streaming:
        return _typed_stream(builder, cast) if cast else _noted(builder.as_streaming_dataset(), builder)
    if on_bad_row == "drop":
        prepare_without_bad_rows(builder)
    else:
        builder.download_and_prepare()
    return builder.as_dataset()


def load_widened(read: Callable[..., Any]) -> tuple[DatasetDict | IterableDatasetDict, Callable[..., Any]]:
    """Returns the result of `read`, and `read` with the options that it took; types widen until they hold all values.

    A column whose values differ in type is of `Json`, however long the files are and whichever of them differs.

    Raises:
        DatasetGenerationError: the files cannot be read in another way either.
    """
    failed: DatasetGenerationError | None = None
    narrow, is_whole = read, False
    while True:
        try:
            return read(), read
        except Exception as error:
            if not isinstance(error, DatasetGenerationError):
                if failed is None:
                    raise
                raise failed from failed.__cause__  # these files are not read in chunks
            if failed is None or isinstance(failed.__cause__, OtherType):
                failed = error
            other = error.__cause__
            if isinstance(other, OtherType) and (is_whole or not other.is_time):
                read = partial(read, features=other.features)
            elif not is_whole:
                read, is_whole = partial(narrow, chunksize=_WHOLE), True
            else:
                raise failed from failed.__cause__


def _has_stated_types(builder: JsonBuilder) -> bool:
    """Returns whether a dataset's card gives its types; for files that were read before, the cache gives them."""
    return builder.info.features is not None and not Path(builder.cache_dir).exists()


def _typed_stream(builder: JsonBuilder, cast: "_CheckedCast") -> IterableDatasetDict:
    """The stream of JSON files with types of its own also where they are arrays, which are read whole anyway."""
    splits = builder.as_streaming_dataset()
    if builder.info.features is not None:
        return _noted(splits, builder)
    next(iter(next(iter(splits.values()))), None)
    builder.info.features = cast.first
    return _noted(builder.as_streaming_dataset(), builder)


def _noted(splits: IterableDatasetDict, builder: Any) -> IterableDatasetDict:
    """The streams, with their files noted."""
    for split, files in (builder.config.data_files or {}).items():
        note_files(splits[split], map(str, files), files.origin_metadata)
    return splits


# --- Checking ---------------------------------------------------------------------------------------------------------


@dataclass
class _CheckedCast:
    """A JSON loader's step from the types of a block to those of the first rows, refused where it changes values."""

    builder: JsonBuilder
    are_stated: bool  # by the dataset's authors, who may mean numbers and objects to become text
    first: Features | None = None  # types of the first block where the loader has none, as of a JSON array

    def __call__(self, table: pa.Table, json_field_paths: Collection[list[str | int]] = ()) -> pa.Table:
        features = self.builder.info.features or self.first
        if features is not None:
            self._check(table, features, {tuple(path) for path in json_field_paths})
        table = type(self.builder)._cast_table(self.builder, table, json_field_paths=json_field_paths)
        if features is None:
            self.first = Features.from_arrow_schema(table.schema)
        return table

    def _check(self, table: pa.Table, features: Features, encoded: Collection[_Steps]) -> None:
        places = {
            steps: kinds
            for field in table.schema
            if field.name in features
            for steps, kinds in _unlike(features[field.name], field.type, (field.name,), encoded)
            if not self.are_stated or kinds[1] in ("mixed", "time")
        }
        if not places:
            return
        steps, (needed, kind) = next(iter(places.items()))
        column = ".".join(str(step) for step in steps if step != 0)
        shown = "only dates" if kind == "time" else _shown(_first_unlike(table, steps, needed, steps in encoded))
        raise OtherType(
            f"{column!r} is {shown} in rows further on and {needed} in the first",
            Features({name: _widened(feature, (name,), places) for name, feature in features.items()}),
            all(kind == "time" for _, kind in places.values()),
        )


def _unlike(
    feature: Any, found: pa.DataType, steps: _Steps, encoded: Collection[_Steps]
) -> Iterator[tuple[_Steps, tuple[str, str]]]:
    """Where a block has values of another kind than `feature`, and both kinds; `encoded` is what became JSON text."""
    if isinstance(feature, Json) or pa.types.is_null(found):
        return
    needed = _needed_kind(feature)
    kind = "mixed" if steps in encoded else _kind(found)
    if needed == kind == "an object":
        for field in found:
            if field.name in feature:  # other keys are refused by the cast itself
                yield from _unlike(feature[field.name], field.type, (*steps, field.name), encoded)
    elif needed == kind == "a list":
        yield from _unlike(feature.feature, found.value_type, (*steps, 0), encoded)
    elif needed not in (kind, "nothing") and not (needed == "a number" and kind in ("text", "mixed")):  # it is parsed
        yield steps, (needed, kind)


def _needed_kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return "an object"
    if isinstance(feature, List | LargeList):
        return "a list"
    return _kind(feature.pa_type) if isinstance(feature, Value) else "nothing"


# What a type holds, in words, and what tells it.
_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "nothing": (pa.types.is_null,),
    "text": (pa.types.is_string, pa.types.is_large_string),
    "true or false": (pa.types.is_boolean,),
    "a number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "time": (pa.types.is_temporal,),
    "an object": (pa.types.is_struct,),
    "a list": (pa.types.is_list, pa.types.is_large_list),
}


def _kind(found: pa.DataType) -> str:
    return next((kind for kind, tests in _KINDS.items() if any(test(found) for test in tests)), str(found))


def _widened(feature: Any, steps: _Steps, places: Collection[_Steps]) -> Any:
    if steps in places:
        return Json()
    if isinstance(feature, dict):
        return {key: _widened(inside, (*steps, key), places) for key, inside in feature.items()}
    if isinstance(feature, List | LargeList):
        return type(feature)(_widened(feature.feature, (*steps, 0), places))
    return feature


def _first_unlike(table: pa.Table, steps: _Steps, needed: str, is_encoded: bool) -> Any:
    """The first value at a place that is of another kind than `needed`."""
    values = [value for value in table[steps[0]].to_pylist() if value is not None]
    for step in steps[1:]:
        inside = [item for value in values for item in (value if step == 0 else [value.get(step)])]
        values = [value for value in inside if value is not None]
    values = [ujson_loads(value) for value in values] if is_encoded else values
    like = {"text": str, "an object": dict, "a list": list}.get(needed, ())
    return next((value for value in values if not isinstance(value, like)), values[0])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
