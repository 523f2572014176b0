"""Preference rows {prompt, chosen, rejected}: where they come from and what they must hold."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from trl.scripts.utils import DatasetConfig

from ..errors import SimPOError
from ..log import get_logger
from .fields import SOURCE, check_columns
from .formats import to_pairs
from .media import note_media
from .mixing import CONVERSATION_FIELDS, carve_test, concatenate, rows_of_fraction, rows_of_shares
from .recognition import is_text
from .settings import DataConfig, data_problems, split_use
from .sources import Rows, Source, load_splits, pick_split, readable_rows
from .stream_files import note_rows
from .watched import BadRow
from .written import read_messages

logger = get_logger(__name__)

# Rows of a stream that are held to be shuffled.
_SHUFFLED_ROWS = 1000


@dataclass(frozen=True)
class _Part:
    """A split of a source as it enters a set; `key` is the setting that names the split."""

    source: Source
    split: str
    key: str
    fraction: float | None = None
    keep: tuple[str, ...] | None = None  # columns; None for all


def load_preferences(
    config: DataConfig, seed: int = 42, *, conversations: bool = False, on_bad_row: BadRow | None = None
) -> tuple[Rows, Dataset | None]:
    """Load the training pairs and, where there are any, the evaluation pairs.

    Args:
        seed: which pairs `test_split_size` takes depends on it.
        conversations: whether rows of `messages` without answers to choose from will do, as they are.
        on_bad_row: "drop" leaves out rows that cannot be read; otherwise they are an error.

    Returns:
        The training set (an IterableDataset with `streaming`) and the evaluation set (None without one), each with the
        columns `chosen` and `rejected` and, where the source has them, `prompt`, `tools`, `chat_template_kwargs` and
        `margin`; of ranked answers `prompt`, `responses` and `scores` or `ranks`. Rows are in the order of their
        sources. The evaluation set has also `source`, where its rows come from several.

    Raises:
        SimPOError: settings contradict each other, a source cannot be found or read, a split is unknown, a set is
            empty, a column is missing, or sources differ in the types of a column.
    """
    if problems := data_problems(asdict(config)):
        raise SimPOError("\n".join(problems))
    loaded: dict[str, dict[str, Rows]] = {}
    read = partial(_conversations_or_pairs if conversations else _pairs, config)

    def splits_of(source: Source) -> dict[str, Rows]:
        if repr(source) not in loaded:
            loaded[repr(source)] = load_splits(source, streaming=config.streaming, on_bad_row=on_bad_row)
        return loaded[repr(source)]

    train, sources = _load_set(_train_parts(config), splits_of, config, read)
    assert train is not None  # no training part is optional
    if config.test_split_size is not None:
        train, test_set = carve_test(train, config.test_split_size, seed)
        sources = sources and carve_test(sources, config.test_split_size, seed)[1]
    else:
        test_set, sources = _load_set(_test_parts(config, splits_of), splits_of, config, read)
    if isinstance(train, IterableDataset):
        train = _shuffled_stream(train, seed, len(_train_parts(config)))
        _note_rows(train, config, splits_of)
    return train, None if test_set is None else _with_sources(_whole(test_set), sources)


def load_training_rows(config: DataConfig) -> dict[str, Dataset]:
    """Returns the rows of the training sources as they are in their files, by the name that messages call each.

    Raises:
        SimPOError: as :func:`load_preferences`, of settings, sources and splits.
    """
    splits_of = _raw_splits(config)
    return _raw(_train_parts(config), splits_of, config)


def load_test_rows(config: DataConfig) -> dict[str, Dataset]:
    """Returns the rows of the evaluation splits like :func:`load_training_rows`; none where there is no such split."""
    splits_of = _raw_splits(config)
    return _raw(_test_parts(config, splits_of), splits_of, config)


def _raw_splits(config: DataConfig) -> Callable[[Source], dict[str, Rows]]:
    """Returns what reads the splits of a source, whole and once."""
    if problems := data_problems(asdict(config)):
        raise SimPOError("\n".join(problems))
    loaded: dict[str, dict[str, Rows]] = {}

    def splits_of(source: Source) -> dict[str, Rows]:
        if repr(source) not in loaded:
            loaded[repr(source)] = load_splits(source)
        return loaded[repr(source)]

    return splits_of


def _raw(parts: list[_Part], splits_of: Callable[[Source], dict[str, Rows]], config: DataConfig) -> dict[str, Dataset]:
    found = _rows_of(parts, splits_of, config) if parts else {}
    return {name: rows for name, rows in found.items() if isinstance(rows, Dataset)}


def _shuffled_stream(train: IterableDataset, seed: int, sources: int) -> IterableDataset:
    """A stream in the only random order that it can have: within a buffer, otherwise on each pass."""
    if sources > 1:
        logger.warning(
            f"The {sources} sources of the stream are read one after the other, and only {_SHUFFLED_ROWS} rows at a "
            "time are shuffled: training sees first one source, then the next. Without streaming they are mixed."
        )
    return train.shuffle(seed=seed, buffer_size=_SHUFFLED_ROWS)


def _note_rows(train: IterableDataset, config: DataConfig, splits_of: Callable[[Source], dict[str, Rows]]) -> None:
    """Note what decides which rows the stream has: files and settings, without the names of places."""
    parts = [(splits_of(part.source)[part.split], [part.split, part.keep]) for part in _train_parts(config)]
    settings = [config.columns, config.dataset_format, config.test_split_size]
    note_rows(train, [(rows, taken) for rows, taken in parts if isinstance(rows, IterableDataset)], settings)


def describe_sources(config: DataConfig) -> list[dict[str, Any]]:
    """Returns the sources of a run, for a manifest or a model card, without a path of this machine.

    An evaluation split is told only where the settings name it.
    """
    uses = [("train", part) for part in _train_parts(config)] + [("test", part) for part in _named_test_parts(config)]
    return [
        {
            "name": part.source.public_name(),
            "config": part.source.config,
            "split": part.split,
            "fraction": part.fraction,
            "use": use,
        }
        for use, part in uses
    ]


def source_names(config: DataConfig) -> list[str]:
    """Returns the names of the sources as they were given: files, folders and datasets of the Hub."""
    return [part.source.name for part in (*_train_parts(config), *_named_test_parts(config))]


# --- From settings to splits ------------------------------------------------------------------------------------------


def _train_parts(config: DataConfig) -> list[_Part]:
    if config.dataset_mixer:
        splits = [split for split in config.dataset_splits or ["train"] if split_use(split) == "train"]
        parts = [
            _Part(source, split, "dataset_splits", fraction)
            for source, fraction in zip(_mixer_sources(config), config.dataset_mixer.values(), strict=True)
            for split in splits
        ]
        return [part for part in parts if part.fraction]
    if config.datasets:
        return [_listed_part(entry) for entry in config.datasets if entry.get("fraction") != 0]
    source = Source(str(config.dataset_name), config.dataset_config)
    return [_Part(source, config.dataset_train_split, "dataset_train_split")]


def _listed_part(entry: dict[str, Any]) -> _Part:
    given = DatasetConfig(**entry)
    source = Source(given.path, given.name, given.data_dir, given.data_files)
    keep = None if given.columns is None else tuple(given.columns)
    return _Part(source, given.split, "split in its entry of datasets", given.fraction, keep)


def _mixer_sources(config: DataConfig) -> list[Source]:
    names = list(config.dataset_mixer or {})
    return [Source(*pair) for pair in zip(names, config.dataset_configs or [None] * len(names), strict=True)]


def _named_test_parts(config: DataConfig) -> list[_Part]:
    """Evaluation splits that the settings name."""
    if config.eval_dataset_name:
        split = config.dataset_test_split
        return [_Part(Source(config.eval_dataset_name), split, "dataset_test_split")] if split else []
    if config.dataset_mixer:
        splits = [split for split in config.dataset_splits or [] if split_use(split) == "test"]
        return [_Part(source, split, "dataset_splits") for source in _mixer_sources(config) for split in splits]
    if config.dataset_name and config.dataset_test_split:
        source = Source(config.dataset_name, config.dataset_config)
        return [_Part(source, config.dataset_test_split, "dataset_test_split")]
    return []


def _test_parts(config: DataConfig, splits_of: Callable[[Source], dict[str, Rows]]) -> list[_Part]:
    """Evaluation splits: those named, or else what the sources call 'test'."""
    if named := _named_test_parts(config):
        return named
    if config.eval_dataset_name:
        source = Source(config.eval_dataset_name)
        splits = splits_of(source)
        split = "test" if "test" in splits or len(splits) > 1 else next(iter(splits))
        return [_Part(source, split, "dataset_test_split")]
    if config.datasets or config.dataset_splits:
        return []
    sources = (
        _mixer_sources(config) if config.dataset_mixer else [Source(str(config.dataset_name), config.dataset_config)]
    )
    return [_Part(source, "test", "dataset_test_split") for source in sources if "test" in splits_of(source)]


# --- From splits to sets ----------------------------------------------------------------------------------------------


def _load_set(
    parts: list[_Part],
    splits_of: Callable[[Source], dict[str, Rows]],
    config: DataConfig,
    read: Callable[[Rows, str], Rows],
) -> tuple[Rows | None, Rows | None]:
    """The rows of all parts, as `read` gives them, as one set, and where each comes from; None without a part."""
    if not parts:
        return None, None
    found = _rows_of(parts, splits_of, config)
    return concatenate({name: read(rows, name) for name, rows in found.items()}), _sources(found, parts)


def _sources(found: dict[str, Rows], parts: list[_Part]) -> Rows | None:
    """Where each row of some sets comes from: what its column `source` says, or else the name of its set.

    Returns:
        Rows of one column; None where all come from the same place, and of streams, whose length is not known.
    """
    labels, sources = _labels(parts), list[str]()
    for name, rows in found.items():
        if not isinstance(rows, Dataset):
            return None
        own = rows.with_format(None)[SOURCE][:] if is_text(rows.features.get(SOURCE)) else [None] * len(rows)
        sources += [each or labels.get(name, name) for each in own]
    return Dataset.from_dict({SOURCE: sources}) if len(set(sources)) > 1 else None


def _labels(parts: list[_Part]) -> dict[str, str]:
    """Returns for what messages call a part a name with as few of its folders as tell it from the others."""
    names = {_name_of(part): (Path(part.source.name).parts, part.split) for part in parts}
    for depth in range(1, max(len(path) for path, _ in names.values()) + 1):
        labels = {name: f"{'/'.join(path[-depth:])}, {split}" for name, (path, split) in names.items()}
        if len(set(labels.values())) == len(labels):
            break
    return labels


def _with_sources(rows: Dataset, sources: Rows | None) -> Dataset:
    return rows.add_column(SOURCE, sources[SOURCE][:]) if isinstance(sources, Dataset) else rows


def _name_of(part: _Part) -> str:
    """Returns what messages call a part."""
    return f"Split {part.split!r} of {part.source.name}"


def _rows_of(parts: list[_Part], splits_of: Callable[[Source], dict[str, Rows]], config: DataConfig) -> dict[str, Rows]:
    """The rows of each part, as many as its fraction gives, by the name that messages call them."""
    names = [_name_of(part) for part in parts]
    picked = [pick_split(splits_of(part.source), part.split, part.source, part.key) for part in parts]
    picked = [_kept_columns(rows, part, name) for rows, part, name in zip(picked, parts, names, strict=True)]
    sets: dict[str, Rows] = {}
    for name, rows in zip(names, _first_rows(picked, parts, names, bool(config.datasets)), strict=True):
        if isinstance(rows, Dataset) and len(rows) == 0:  # its fraction is less than a row
            continue
        sets[name if name not in sets else f"{name} (entry {len(sets) + 1})"] = rows
    return sets


def _pairs(config: DataConfig, rows: Rows, name: str) -> Rows:
    """The rows as preference pairs or ranked answers."""
    pairs = to_pairs(rows, config.columns, config.dataset_format, name)
    check_columns(pairs.column_names, name, rows.column_names)
    return pairs


def _conversations_or_pairs(config: DataConfig, rows: Rows, name: str) -> Rows:
    """The rows as pairs or, where they have no answers to choose from, their conversations and what belongs to them."""
    columns = rows.column_names or []
    if "messages" not in columns or {"chosen", "responses", "answers"} & {*columns, *(config.columns or {})}:
        return _pairs(config, rows, name)
    rows = read_messages(note_media(rows), name)
    return rows.select_columns([column for column in CONVERSATION_FIELDS if column in (rows.column_names or columns)])


def _kept_columns(rows: Rows, part: _Part, name: str) -> Rows:
    if part.keep is None:
        return rows
    if missing := [column for column in part.keep if column not in (rows.column_names or part.keep)]:
        raise SimPOError(
            f"{name}: its entry of datasets keeps column {missing[0]!r}, but the columns are "
            f"{', '.join(map(repr, rows.column_names))}. Correct `columns` of the entry."
        )
    return rows.select_columns(list(part.keep))


def _first_rows(picked: list[Rows], parts: list[_Part], names: list[str], are_shares: bool) -> list[Rows]:
    """The first rows of each part, as many as its fraction gives."""
    sized = [rows for rows in picked if isinstance(rows, Dataset)]
    fractions = [part.fraction for part in parts if part.fraction is not None]
    if len(sized) < len(picked) or len(fractions) < len(picked):
        return picked
    lengths = [len(rows) for rows in sized]
    if are_shares:
        counts = rows_of_shares(lengths, fractions)
    else:
        counts = [rows_of_fraction(length, fraction) for length, fraction in zip(lengths, fractions, strict=True)]
    for name, count, length in zip(names, counts, lengths, strict=True):
        logger.info(f"{name}: {count} of {length} rows")
    if not any(counts):
        raise SimPOError(
            f"The fractions of {', '.join(names)} leave no row of {sum(lengths)} to train on. Raise a fraction."
        )
    return [rows.select(range(count)) for rows, count in zip(sized, counts, strict=True)]


def _whole(rows: Rows) -> Dataset:
    """A set that is evaluated on is read before training, in a stream too."""
    if isinstance(rows, Dataset):
        return rows
    return Dataset.from_list(list(readable_rows(rows, "The evaluation set")), features=rows.features)
