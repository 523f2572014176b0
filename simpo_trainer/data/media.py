"""Rows with pictures, sound or film: training reads text alone, so they are noted, and dropped later and counted."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Features, Image, IterableDataset, LargeList, List, Value, Video

from ..errors import SimPOError
from .fields import MEDIA_NOTE
from .sources import Rows

# Columns that hold media in published sets, whatever the type: files, addresses, bytes.
_NAMES = ("image", "images", "video", "videos", "audio", "audios")
# Texts for nothing, as a CSV file has them.
_NOTHING = ("", "[]", "{}", "null", "none", "nan", '""')
# Kinds of content parts that are no text: `image`, `image_url`, `input_audio`, `video`, ...
_PARTS = ("image", "audio", "video")


def note_media(rows: Rows, read: Collection[str] = ()) -> Rows:
    """Replaces the columns of media by one that names, in each row, the first of them that is not empty.

    Nothing is decoded. Where no row has media there is no such column; a stream, not read ahead, has it always.

    Args:
        read: columns that are read as a field, whatever their names.
    """
    columns = _media_columns(rows, read)
    if not columns:
        return rows
    if isinstance(rows, IterableDataset):
        features = rows.features
        if features is None:
            return rows.map(_NoteMedia(columns), batched=True, remove_columns=list(columns))
        kept = {name: feature for name, feature in features.items() if name not in columns}
        noted = Features(kept | {MEDIA_NOTE: Value("string")})
        for column in columns:
            rows = rows.cast_column(column, _undecoded(features[column]))
        return rows.map(_NoteMedia(columns), batched=True, remove_columns=list(columns), features=noted)
    notes: list[str | None] = []
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=1000):
        present = [_are_there(table[column].combine_chunks()) for column in columns]
        notes += [_first(columns, row) for row in zip(*present, strict=True)]
    rest = rows.remove_columns(list(columns))
    return rest.add_column(MEDIA_NOTE, pa.array(notes, pa.string())) if any(notes) else rest


def refuse_media(rows: Rows, name: str) -> Rows:
    """Returns the rows without columns of media, all of which are empty.

    Raises:
        SimPOError: a row has media in one of them.
    """
    rows = note_media(rows)
    if MEDIA_NOTE not in (rows.column_names or ()):
        return rows
    for number, row in enumerate(rows.select_columns([MEDIA_NOTE])):
        if row[MEDIA_NOTE] is not None:
            raise media_error(name, number, f"something in the column {row[MEDIA_NOTE]!r}")
    return rows.remove_columns([MEDIA_NOTE])


def media_error(name: str, row: int, what: str) -> SimPOError:
    """The error for a row with media where rows are not dropped."""
    return SimPOError(
        f"{name}: row {row} has {what}; training reads text alone. Remove the rows with pictures, sound or film, or, "
        "if their texts stand alone, remove what belongs to the media, the placeholders in the text too."
    )


def media_part(content: Any) -> str | None:
    """Returns the kind of the first part of a message's content that is a picture, sound or film; None without one."""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, Mapping):
            continue
        # Parts in a struct column have the keys of all parts, null where they are not theirs.
        kinds = [part["type"]] if part.get("type") else [key for key, value in part.items() if value is not None]
        found = [str(kind) for kind in kinds if any(word in str(kind).lower() for word in _PARTS)]
        if found:
            return found[0]
    return None


def _media_columns(rows: Rows, read: Collection[str]) -> tuple[str, ...]:
    features: Mapping[str, Any] = rows.features or dict.fromkeys(next(iter(rows), {}))
    return tuple(
        name
        for name, feature in features.items()
        if name not in read and (name.lower() in _NAMES or _is_media(feature))
    )


def _is_media(feature: Any) -> bool:
    inside = feature.feature if isinstance(feature, List | LargeList) else feature
    return isinstance(inside, Audio | Image | Video)


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, List | LargeList):
        return type(feature)(_undecoded(feature.feature))
    return replace(feature, decode=False) if isinstance(feature, Audio | Image | Video) else feature


@dataclass(frozen=True)
class _NoteMedia:
    """The function that `map` runs on a stream; its field is part of the cache's key."""

    columns: tuple[str, ...]

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        size = len(next(iter(batch.values())))
        given = [batch.get(column, [None] * size) for column in self.columns]
        present = [[_is_there(value) for value in values] for values in given]
        return {MEDIA_NOTE: [_first(self.columns, row) for row in zip(*present, strict=True)]}


def _first(columns: tuple[str, ...], present: Collection[bool]) -> str | None:
    return next((column for column, is_there in zip(columns, present, strict=True) if is_there), None)


def _is_there(value: Any) -> bool:
    """Returns whether a value of a column of media says anything."""
    if isinstance(value, Mapping):
        return any(map(_is_there, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_there, value))
    return value.strip().lower() not in _NOTHING if isinstance(value, str) else value is not None and value != b""


def _are_there(array: pa.Array) -> list[bool]:
    """Returns the answer of :func:`_is_there` for each value of a table's column, without reading bytes."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):  # JSON
        return [_is_there(text and json.loads(text)) for text in array.to_pylist()]
    valid = array.is_valid().to_pylist()
    if pa.types.is_struct(kind):
        inside = [_are_there(array.field(number)) for number in range(kind.num_fields)]
        return [is_valid and any(row) for is_valid, *row in zip(valid, *inside, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        parents = pc.list_parent_indices(array).to_pylist()
        there = {row for row, says in zip(parents, _are_there(array.flatten()), strict=True) if says}
        return [row in there for row in range(len(array))]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.fill_null(pc.greater(pc.binary_length(array), 0), False).to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [_is_there(text) for text in array.to_pylist()]
    return valid
