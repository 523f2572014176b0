"""One source of rows to its splits: a file, a folder, a dataset of the Hub; and where a broken file is broken."""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Json,
    LargeList,
    List,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from ..errors import SimPOError, near
from .json_types import load_checked, load_widened
from .stream_files import note_files
from .text_rows import LOADERS, broken_place, cause_line
from .watched import UNREADABLE, BadRow

Rows: TypeAlias = Dataset | IterableDataset


@dataclass(frozen=True)
class Source:
    """The source of rows: a file, a folder or a dataset of the Hub, with further arguments of `load_dataset`."""

    name: str
    config: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str] | None = None

    def public_name(self) -> str:
        """The name as a model card may show it: that of a Hub dataset, and no path of this machine."""
        path = Path(self.name).expanduser()
        if path.is_dir():
            return "local folder"
        is_hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", self.name) and path.suffix not in LOADERS
        return self.name if is_hub_name and not path.exists() and self.name not in LOADERS.values() else "local file"


def load_splits(source: Source, *, streaming: bool = False, on_bad_row: BadRow | None = None) -> dict[str, Rows]:
    """All splits of a source; a single file has one, 'train'.

    Args:
        on_bad_row: "drop" leaves out rows that cannot be read; otherwise they are an error.

    Raises:
        SimPOError: the source cannot be found or read.
    """
    path = Path(source.name).expanduser()
    how: dict[str, Any] = {"streaming": streaming, "on_bad_row": on_bad_row}
    if source.data_dir or source.data_files:
        return _load_named(source, path, how)
    if path.is_file():
        return _load_file(path, source, how)
    if path.is_dir():
        return _load_folder(path, source, how)
    if path.is_absolute() or source.name.startswith((".", "~")) or path.suffix in LOADERS:
        raise SimPOError(f"{source.name} does not exist. {_near_names(path)}")
    return _load_named(source, path, how)


def pick_split(splits: dict[str, Rows], split: str, source: Source, key: str) -> Rows:
    """One split, or the part of it that `split` asks for in the notation of `datasets`, such as `train[:1000]`.

    Raises:
        SimPOError: there is no such split, or it has no rows; `key` is the setting that names it.
    """
    found = splits[split] if split in splits else _slice_split(splits, split, source, key)
    if isinstance(found, Dataset):
        is_empty = len(found) == 0
    else:
        is_empty = next(readable_rows(found, f"Split {split!r} of {source.name}"), None) is None
    if is_empty:
        raise SimPOError(f"Split {split!r} of {source.name} has no rows; a set needs at least one preference pair.")
    return found


def readable_rows(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream, with an error that says what to do where one cannot be read.

    Raises:
        SimPOError: what is in the files has not the types of their beginning, or they are broken.
    """
    before = 0
    try:
        for row in rows:
            yield row
            before += 1
    except UNREADABLE as error:
        if isinstance(error, ValueError | TypeError) and not _is_of_reader(error):
            raise
        raise SimPOError(
            f"{name}: the row behind row {before} of the stream cannot be read ({cause_line(error)}). The types of a "
            "stream are those of the first rows of its files. Remove streaming, which looks at whole files and names "
            "a broken line; or write the column the same way everywhere, with every key that occurs in the first row."
        ) from error


def _is_of_reader(error: Exception) -> bool:
    """Returns whether text, a table or a failed cast of a table is at fault."""
    return isinstance(error, pa.ArrowException | UnicodeDecodeError) or str(error).startswith("Couldn't cast")


def _slice_split(splits: dict[str, Rows], split: str, source: Source, key: str) -> Rows:
    lengths = {name: len(rows) for name, rows in splits.items() if isinstance(rows, Dataset)}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError):
        parts = []
    whole: dict[str, Any] = dict(splits)
    chosen = [
        whole[part.splitname].select(range(part.from_ or 0, part.to or lengths[part.splitname])) for part in parts
    ]
    if chosen:
        return concatenate_datasets(chosen)
    other_way = ", or to null if eval_dataset_name gives the evaluation pairs." if key == "dataset_test_split" else "."
    no_slices = " A part of a split cannot be streamed." if not lengths and "[" in split else ""
    raise SimPOError(
        f"{source.name} has no split {split!r}; it has {', '.join(map(repr, splits))}.{no_slices} Set {key} to one of "
        f"these{other_way}"
    )


def _load_named(source: Source, path: Path, how: dict[str, Any]) -> dict[str, Rows]:
    """A dataset of the Hub, or a local one whose files are named."""
    try:
        return _read(
            str(path) if path.exists() else source.name,
            source.config,
            data_dir=source.data_dir,
            data_files=source.data_files,
            **how,
        )
    except SimPOError:
        raise
    except (DatasetGenerationError, EOFError, zlib.error) as error:
        files = f" (data_files: {source.data_files})" if source.data_files else ""
        places = (broken_place(file) for file in _named_files(source, path) if file.is_file())
        why = next(filter(None, places), None)
        raise _own_error(error) or SimPOError(
            why or f"{source.name!r}{files} cannot be read: {cause_line(error)}. Repair it or write it again."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SimPOError(
            f"{source.name!r} is neither a file or folder here nor a dataset that could be read from the Hub "
            f"({cause_line(error)}). Check the spelling, the network and, for a private dataset, `hf auth login`; or "
            f"give a local path. {_near_names(path)}"
        ) from error


def _named_files(source: Source, path: Path) -> list[Path]:
    """The local files that `data_files` may mean."""
    named: Any = source.data_files or []
    named = list(named.values()) if isinstance(named, dict) else [named] if isinstance(named, str) else named
    return [folder / str(file) for file in named for folder in (Path(), path, path / (source.data_dir or ""))]


def _load_file(path: Path, source: Source, how: dict[str, Any]) -> dict[str, Rows]:
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise SimPOError(
            f"{path} ends in {path.suffix or 'no extension'!r}; a dataset file must end in {', '.join(LOADERS)}. "
            "Convert or rename it."
        )
    if source.config is not None:
        raise SimPOError(
            f"{path} is a file and has no configurations; found {source.config!r}. Set its configuration to null."
        )
    _refuse_empty(path)
    try:
        return _readable(_read(loader, data_files=str(path.resolve()), **how))
    except Exception as error:  # each loader fails in its own ways, none of which names the line
        raise _own_error(error) or SimPOError(_why_unreadable(path, error)) from error


def _load_folder(path: Path, source: Source, how: dict[str, Any]) -> dict[str, Rows]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            splits = _as_splits(load_from_disk(str(path)))
        except Exception as error:  # broken JSON, a missing or cut Arrow file, a version that cannot be read
            raise SimPOError(
                f"{path} was written by save_to_disk but cannot be read ({cause_line(error)}). Write it again."
            ) from error
        if not how["streaming"]:
            return splits
        streams = {name: rows.to_iterable_dataset() for name, rows in splits.items() if isinstance(rows, Dataset)}
        for name, stream in streams.items():
            tables = [str(table["filename"]) for table in splits[name].cache_files]
            note_files(stream, tables, [None] * len(tables))
        return streams
    files = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in LOADERS)
    if not files:
        raise SimPOError(
            f"{path} holds no dataset file and is no `save_to_disk` folder. {_near_names(path / 'train')} Put files "
            f"ending in {', '.join(LOADERS)} there, with the split in their names (train.jsonl, test.jsonl)."
        )
    for file in files:
        _refuse_empty(file)
    try:
        return _readable(_read(str(path.resolve()), source.config, **how))
    except Exception as error:  # as above; the first file found broken is the one to name
        if own := _own_error(error):
            raise own from error
        broken = (why for file in files if (why := broken_place(file)))
        why = next(broken, None) or _unlike_files(files) or f"{path} cannot be read: {cause_line(error)}."
        raise SimPOError(why) from error


def _read(where: str, config: str | None = None, **options: Any) -> dict[str, Rows]:
    """`load_dataset`, with the types that its loaders guess put right: those of the rows, and text as it is written."""
    found, read = load_widened(partial(load_checked, where, config, **options))
    splits = _as_splits(found)
    rows = next(iter(splits.values()))
    if rows.builder_name == "csv":
        # All text: an answer may be "NA" or "5". A margin is made a number when pairs are.
        names = rows.column_names or list(next(iter(rows), {}))
        texts = Features({name: Value("string") for name in names})
        return _as_splits(read(features=texts, keep_default_na=False)) if names else splits
    return _undated(splits, rows, read) if rows.builder_name == "json" else splits


def _undated(splits: dict[str, Rows], rows: Rows, read: Callable[..., Any]) -> dict[str, Rows]:
    """The splits, read again where the loader took texts for points in time, as it does if all look like 2020-01-31."""
    features = rows.features
    if features is None:  # of a stream without rows
        return splits
    undated = Features({name: _without_dates(feature) for name, feature in features.items()})
    if undated == features:
        return splits
    texts = Features(
        {name: Value("string") if _is_date(features[name]) else feature for name, feature in undated.items()}
    )
    found = _as_splits(read(features=undated))
    return {split: again.map(_unchanged, batched=True, features=texts) for split, again in found.items()}


def _unchanged(batch: Mapping[str, list]) -> dict[str, list]:
    return dict(batch.items())  # read out of their encoding as objects


def _is_date(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("timestamp", "date", "time"))


def _without_dates(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {key: _without_dates(inside) for key, inside in feature.items()}
    if isinstance(feature, List | LargeList):
        return type(feature)(_without_dates(feature.feature))
    return Json() if _is_date(feature) else feature


def _unlike_files(files: list[Path]) -> str | None:
    """Names the first column that JSON Lines files write differently; None if there is none."""
    first: dict[str, tuple[str, Path]] = {}
    for file in files:
        if file.suffix.lower() != ".jsonl":
            continue
        kinds: dict[str, set[str]] = {}
        with file.open(encoding="utf-8-sig") as lines:
            for row in (json.loads(line) for line in lines if line.strip()):
                for column, value in row.items():
                    kinds.setdefault(column, set()).update(_kinds(value))
        for column, found in kinds.items():
            what = " and ".join(sorted(found)) or "nothing"
            before, other = first.setdefault(column, (what, file))
            if found and what != before:
                return (
                    f"Column {column!r} holds {before} in {other} and {what} in {file.name}. Write both the same way, "
                    "or put the rows into one file."
                )
    return None


def _kinds(value: Any) -> set[str]:
    if isinstance(value, list):
        return {"a list", *(f"{kind} in a list" for item in value for kind in _kinds(item))}
    if isinstance(value, dict):
        return {f"objects with the keys {', '.join(sorted(value))}"}
    names = {str: "text", bool: "true or false", int: "whole numbers", float: "numbers with a fraction"}
    return {names[type(value)]} if value is not None else set()


def _as_splits(loaded: Dataset | DatasetDict | IterableDataset | IterableDatasetDict) -> dict[str, Rows]:
    """A lone dataset, as `save_to_disk` may hold, is the split 'train'."""
    return (
        {"train": loaded} if isinstance(loaded, Dataset | IterableDataset) else {str(k): v for k, v in loaded.items()}
    )


def _readable(splits: dict[str, Rows]) -> dict[str, Rows]:
    """Refuses text that is not UTF-8, which JSON loaders let pass and reading a row would stumble over.

    A stream is not read ahead for it.
    """
    for split in splits.values():
        if isinstance(split, Dataset):
            split.data.table.validate(full=True)
    return splits


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise SimPOError(f"{path} is empty; a dataset file needs at least one preference pair. Was it written fully?")


def _near_names(path: Path) -> str:
    """Returns a sentence that says which files are in the folder of a path that does not exist, or which are near."""
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if likely := near(path.name, names, 3):
        return f"Near names in {folder}: {', '.join(likely)}."
    return f"{folder} holds {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}."


def _why_unreadable(path: Path, error: Exception) -> str:
    """The message for a file that its loader gave up on; the file is read again only now, to find the place."""
    if broken := broken_place(path):
        return broken
    if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
        return f"{path} has no rows; a dataset file needs at least one preference pair."
    return f"{path} cannot be read as {path.suffix.lower()[1:]}: {cause_line(error)}. Repair it or write it again."


def _own_error(error: BaseException) -> SimPOError | None:
    """Returns the error of this package that a loader wrapped into its own, or that it is; None if there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, SimPOError):
        found = found.__cause__
    return found
