"""Preference rows {prompt, chosen, rejected}: where they come from and what they must hold."""

import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk

from .errors import SimPOError

# What a file name may end in, and the `datasets` loader that reads it.
LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DataConfig:
    """Where the preference pairs are read from (the data section of a recipe)."""

    dataset_name: str | None = _key(
        None,
        "Preference pairs: a JSON Lines, JSON, Parquet or CSV file; a folder of such files with the split in their "
        "names (train.jsonl, test.jsonl); a folder written by `save_to_disk`; or the name of a dataset of the Hub.",
    )
    dataset_config: str | None = _key(None, "Configuration (subset) of a dataset of the Hub that has several.")
    dataset_train_split: str = _key("train", "Split that is trained on. A single file has one split, 'train'.")
    dataset_test_split: str | None = _key(
        None,
        "Split that is evaluated on. Unset means 'test' where the data has it, and no evaluation set where it has not.",
    )
    eval_dataset_name: str | None = _key(
        None,
        "Evaluation pairs from a source of their own, given like dataset_name; dataset_test_split then names its "
        "split, or unset means 'test' or else its only split.",
    )


def load_preferences(config: DataConfig) -> tuple[Dataset, Dataset | None]:
    """Load the training pairs and, where there are any, the evaluation pairs.

    Returns:
        The training set and the evaluation set (None without one), each with at least the columns `chosen` and
        `rejected`, rows in the order of their source.

    Raises:
        SimPOError: the source cannot be found or read, a split is unknown, a set is empty or a column is missing.
    """
    if not config.dataset_name:
        raise SimPOError(
            "dataset_name is not set; training needs preference pairs. Set it to a file, a folder or a Hub dataset."
        )
    splits = _load_splits(config.dataset_name, config.dataset_config)
    train = _pick_split(splits, config.dataset_train_split, "dataset_train_split", config.dataset_name)
    if config.eval_dataset_name:
        splits = _load_splits(config.eval_dataset_name, None)
        default = "test" if "test" in splits or len(splits) > 1 else next(iter(splits))
        split, source = config.dataset_test_split or default, config.eval_dataset_name
    else:
        split, source = config.dataset_test_split or "test", config.dataset_name
        if config.dataset_test_split is None and "test" not in splits:
            return train, None
    return train, _pick_split(splits, split, "dataset_test_split", source)


def check_columns(dataset: Dataset, name: str) -> None:
    """Check that `dataset` has the columns of preference pairs; `name` is what the message calls it.

    `prompt` may be missing: then both answers carry the whole conversation, and what they share is the prompt.

    Raises:
        SimPOError: `chosen` or `rejected` is missing.
    """
    found = dataset.column_names
    missing = [column for column in ("chosen", "rejected") if column not in found]
    if not missing:
        return
    hints = [
        f"is {near[0]!r} meant to be {column!r}?"
        for column in missing
        if (near := difflib.get_close_matches(column, found, n=1, cutoff=0.5))
    ]
    raise SimPOError(
        f"{name}: column {' and '.join(map(repr, missing))} missing; the columns are {', '.join(map(repr, found))}. "
        "Preference pairs need 'chosen' and 'rejected' (and 'prompt', unless both answers hold the whole "
        "conversation). "
        + " ".join(["Rename the columns:", *hints] if hints else ["Rename the columns or choose another dataset."])
    )


def check_margins(dataset: Dataset, name: str) -> None:
    """Check that a `margin` column, if there is one, holds a finite number >= 0 in every row.

    Raises:
        SimPOError: naming the first row that does not.
    """
    if "margin" not in dataset.column_names:
        return
    for row, margin in enumerate(dataset.with_format(None)["margin"][:]):
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin) or margin < 0:
            raise SimPOError(
                f"{name}: the margin of row {row} is {margin!r}; it must be a finite number, 0 or above. Correct the "
                "column, or remove or rename it if it is not meant for the loss."
            )


def _pick_split(splits: DatasetDict, split: str, key: str, source: str) -> Dataset:
    if split not in splits:
        raise SimPOError(
            f"{source} has no split {split!r}; it has {', '.join(map(repr, splits))}. Set {key} to one of these"
            + (", or give the evaluation pairs by eval_dataset_name." if key == "dataset_test_split" else ".")
        )
    dataset = splits[split]
    if len(dataset) == 0:
        raise SimPOError(f"Split {split!r} of {source} has no rows; a set needs at least one preference pair.")
    check_columns(dataset, f"Split {split!r} of {source}")
    return dataset


def _load_splits(source: str, subset: str | None) -> DatasetDict:
    """All splits of a file, a folder or a Hub dataset."""
    path = Path(source).expanduser()
    if path.is_file():
        return _load_file(path)
    if path.is_dir():
        return _load_folder(path)
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix in LOADERS:
        raise SimPOError(f"{source} does not exist. {_near_names(path)}")
    try:
        return _as_splits(load_dataset(source, subset))
    except (OSError, ValueError, RuntimeError) as error:
        raise SimPOError(
            f"{source!r} is neither a file or folder here nor a dataset that could be read from the Hub "
            f"({_first_line(error)}). Check the spelling, the network and, for a private dataset, `hf auth login`; or "
            f"give a local path. {_near_names(path)}"
        ) from error


def _load_file(path: Path) -> DatasetDict:
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise SimPOError(
            f"{path} ends in {path.suffix or 'no extension'!r}; a dataset file must end in {', '.join(LOADERS)}. "
            "Convert or rename it."
        )
    _refuse_empty(path)
    try:
        return _readable(_as_splits(load_dataset(loader, data_files=str(path.resolve()))))
    except Exception as error:  # each loader fails in its own ways, none of which names the line
        raise SimPOError(_why_unreadable(path, error)) from error


def _load_folder(path: Path) -> DatasetDict:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            return _as_splits(load_from_disk(str(path)))
        except Exception as error:  # broken JSON, a missing or cut Arrow file, a version that cannot be read
            raise SimPOError(
                f"{path} was written by save_to_disk but cannot be read ({_first_line(error)}). Write it again."
            ) from error
    files = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in LOADERS)
    if not files:
        raise SimPOError(
            f"{path} holds no dataset file and is no `save_to_disk` folder. {_near_names(path / 'train')} Put files "
            f"ending in {', '.join(LOADERS)} there, with the split in their names (train.jsonl, test.jsonl)."
        )
    for file in files:
        _refuse_empty(file)
    try:
        return _readable(_as_splits(load_dataset(str(path.resolve()))))
    except Exception as error:  # as above; the first file found broken is the one to name
        broken = (why for file in files if (why := _broken_text(file)))
        raise SimPOError(next(broken, f"{path} cannot be read: {_first_line(error)}.")) from error


def _as_splits(loaded: Dataset | DatasetDict | IterableDataset | IterableDatasetDict) -> DatasetDict:
    """A lone dataset, as `save_to_disk` may hold, is the split 'train'."""
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)


def _readable(splits: DatasetDict) -> DatasetDict:
    """Refuses text that is not UTF-8, which JSON loaders let pass and reading a row would stumble over."""
    for split in splits.values():
        split.data.table.validate(full=True)
    return splits


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise SimPOError(f"{path} is empty; a dataset file needs at least one preference pair. Was it written fully?")


def _near_names(path: Path) -> str:
    """What stands in the folder of a path that does not exist, the likely ones first."""
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"Near names in {folder}: {', '.join(near)}."
    return f"{folder} holds {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}."


def _why_unreadable(path: Path, error: Exception) -> str:
    """The message for a file that its loader gave up on; the file is read again only now, to find the place."""
    if broken := _broken_text(path):
        return broken
    if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
        return f"{path} has no rows; a dataset file needs at least one preference pair."
    return f"{path} cannot be read as {path.suffix.lower()[1:]}: {_first_line(error)}. Repair it or write it again."


def _broken_text(path: Path) -> str | None:
    """Names the first place where a JSON or JSON Lines file is broken; None if it is sound or another format."""
    if LOADERS.get(path.suffix.lower()) != "json":
        return None
    if path.suffix.lower() == ".json":  # one value, or lines like a .jsonl file
        with path.open("rb") as file:
            is_array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        broken = _broken_json(path)
        if is_array or broken is None:
            return broken
    return _broken_line(path)


def _broken_json(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text ({error}). Save it as UTF-8."
    except json.JSONDecodeError as error:
        return f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Repair or remove the row there."
    return None


def _broken_line(path: Path) -> str | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                return f"{path}, line {number}: not UTF-8 text ({error.reason}). Save the file as UTF-8."
            except json.JSONDecodeError as error:
                return f"{path}, line {number}: not valid JSON ({error.msg}). Repair or remove this line."
            if not isinstance(row, dict):
                return f"{path}, line {number}: a {type(row).__name__} where a row {{...}} is needed. Repair this line."
    return None


def _first_line(error: BaseException) -> str:
    """The most telling line of an error: that of its cause, where a loader wrapped it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
