"""The data section of a recipe: its keys, and what can be found wrong with them before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from trl.scripts.utils import DatasetConfig

from ..errors import did_you_mean
from ..knobs import knob
from .formats import NAMED_FIELDS, Format
from .verdicts import SIGNS, plain


@dataclass
class DataConfig:
    """The sources of preference pairs or ranked answers (the data section of a recipe)."""

    dataset_name: str | None = knob(
        None,
        "Preference pairs: a JSON Lines, JSON, Parquet or CSV file; a folder of such files with the split in their "
        "names (train.jsonl, test.jsonl); a folder written by `save_to_disk`; or the name of a dataset of the Hub. "
        "Exactly one of dataset_name, dataset_mixer and datasets is given.",
    )
    dataset_config: str | None = knob(None, "Configuration (subset) of a dataset of the Hub that has several.")
    dataset_train_split: str = knob("train", "Split that is trained on. A single file has one split, 'train'.")
    dataset_test_split: str | None = knob(
        None,
        "Split that is evaluated on. Unset means 'test' where the data has it, and no evaluation set where it has not.",
    )
    eval_dataset_name: str | None = knob(
        None,
        "Evaluation pairs from a source of their own, given like dataset_name; dataset_test_split then names its "
        "split, or unset means 'test' or else its only split.",
    )
    dataset_mixer: dict[str, float] | None = knob(
        None,
        "Several sources, each given like dataset_name, with the fraction (0 to 1) of its training rows that is used, "
        "from the first row on; test splits are used whole.",
    )
    dataset_splits: list[str] | None = knob(
        None,
        "Splits of every source of dataset_mixer: a name with 'train' in it is trained on, one with 'test', 'val' or "
        "'eval' is evaluated on. Unset means 'train', and 'test' of the sources that have it.",
    )
    dataset_configs: list[str | None] | None = knob(
        None, "Configuration (subset) of each source of dataset_mixer, in their order; null for a source without one."
    )
    datasets: list[dict[str, Any]] | None = knob(
        None,
        "Several training sources as trl lists them: entries with the keys path, name, data_dir, data_files, split, "
        "columns and fraction, which is the share of the entry in a mixture that repeats no row; all or none have one.",
    )
    test_split_size: int | float | None = knob(
        None,
        "Evaluation pairs taken out of the training pairs: a share of them (0.05), or their number. The seed decides "
        "which; with streaming they are the first ones, and only a number is possible.",
    )
    streaming: bool = knob(
        False,
        "Read the training pairs while training instead of before, without a copy on disk. Their number is then "
        "unknown, so max_steps is needed, and fractions are not possible. Evaluation pairs are read before.",
    )
    columns: dict[str, Any] | None = knob(
        None,
        f"Where a field ({', '.join(NAMED_FIELDS)}) is found in the rows of every source: a column, or with dots a "
        "place inside one (answers.0.text; completions.response is that of each completion). Fields that are not named "
        "keep the columns of their names. Of two answers, better is the column that tells the better one, and answers "
        "maps its values to that answer ({0: first, 1: second}).",
    )
    dataset_format: Format | None = knob(
        None,
        "How rows are written: pairs (prompt, chosen, rejected; or prompt, responses, scores or ranks), chat (the "
        "same, texts that are to become a user's message and its answers), sharegpt, alpaca, or hh_rlhf (texts with "
        "Human: and Assistant: turns). Unset means what the columns look like; chat and hh_rlhf must be asked for.",
    )
    chat_template: str | None = knob(
        None,
        "Chat template for conversations, saved with the model: its text, a file, or trl:NAME for one that trl ships. "
        "Unset means the tokenizer's own.",
    )
    tokenizer_name_or_path: str | None = knob(
        None, "Tokenizer to use, a folder or a name of the Hub. Unset means the one beside the model."
    )


_DEFAULTS: dict[str, Any] = {key.name: key.default for key in fields(DataConfig)}
_SOURCES = ("dataset_name", "dataset_mixer", "datasets")
# Settings that belong to one kind of source, and would do nothing beside another.
_ONLY_WITH = {
    "dataset_config": "dataset_name",
    "dataset_train_split": "dataset_name",
    "dataset_splits": "dataset_mixer",
    "dataset_configs": "dataset_mixer",
}
_ENTRY_KEYS = [key.name for key in fields(DatasetConfig)]


def split_use(split: str) -> str | None:
    """Returns the use of a split of `dataset_splits` by its name, "train" or "test"; None if the name tells neither."""
    if "train" in split:
        return "train"
    return "test" if any(word in split for word in ("test", "val", "eval")) else None


def data_problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each problem with the keys of the data section, without reading any data.

    Args:
        values: keys of `DataConfig` to values of their types; a key that is not there has its default.
    """
    settings = _DEFAULTS | {key: value for key, value in values.items() if key in _DEFAULTS}
    problems = _source_problems(settings)
    if settings["dataset_mixer"]:
        problems += _mixer_problems(settings)
    if settings["datasets"]:
        problems += _list_problems(settings["datasets"])
    return problems + _test_problems(settings) + _streaming_problems(settings) + _column_problems(settings)


def _source_problems(settings: Mapping[str, Any]) -> list[str]:
    given = [key for key in _SOURCES if settings[key]]
    if not given:
        return [
            "dataset_name is not set; training needs preference pairs. Set it to a file, a folder or a Hub dataset, or "
            "give several sources by dataset_mixer or datasets."
        ]
    if len(given) > 1:
        return [
            f"{' and '.join(given)} are given; the training pairs come from exactly one of them. Remove the others."
        ]
    problems = []
    for key, owner in _ONLY_WITH.items():
        if settings[key] != _DEFAULTS[key] and owner != given[0]:
            problems.append(f"{key} is set but belongs to {owner}; {given[0]} does not read it. Remove {key}.")
    if settings["dataset_test_split"] and not settings["eval_dataset_name"] and given[0] != "dataset_name":
        other = {"dataset_mixer": "dataset_splits", "datasets": "test_split_size or eval_dataset_name"}[given[0]]
        problems.append(
            f"dataset_test_split is set, which belongs to dataset_name or eval_dataset_name; {given[0]} does not read "
            f"it. Use {other} instead."
        )
    return problems


def _mixer_problems(settings: Mapping[str, Any]) -> list[str]:
    mixer, configs = settings["dataset_mixer"], settings["dataset_configs"]
    problems = [
        f"dataset_mixer: the fraction of {name} is {fraction}; it must be from 0 to 1. Correct it."
        for name, fraction in mixer.items()
        if not 0 <= fraction <= 1
    ]
    if not any(mixer.values()):
        problems.append("dataset_mixer: all fractions are 0, which leaves no rows to train on. Raise one.")
    if configs is not None and len(configs) != len(mixer):
        problems.append(
            f"dataset_configs has {len(configs)} entries and dataset_mixer has {len(mixer)} sources; each source needs "
            "one, in order. Give null for a source without a configuration."
        )
    splits = settings["dataset_splits"] or []
    problems += [
        f"dataset_splits: {split!r} tells neither training nor test pairs; a name must hold 'train', or 'test', 'val' "
        "or 'eval'. Rename the split or leave it out."
        for split in splits
        if split_use(split) is None
    ]
    if settings["dataset_splits"] is not None and "train" not in map(split_use, splits):
        problems.append(f"dataset_splits names no training split; found {splits}. Add one with 'train' in its name.")
    return problems


def _list_problems(entries: list[dict[str, Any]]) -> list[str]:
    problems = []
    for number, entry in enumerate(entries, start=1):
        where = f"datasets, entry {number}"
        if not isinstance(entry.get("path"), str) or not entry["path"]:
            problems.append(
                f"{where}: path is {entry.get('path')!r}; it must name a file, folder or Hub dataset. Set it."
            )
        for key in entry:
            if key not in _ENTRY_KEYS:
                problems.append(f"{where}: unknown key {key!r}.{_meant(key, _ENTRY_KEYS)} Rename or remove it.")
        fraction, keep = entry.get("fraction"), entry.get("columns")
        if fraction is not None and (
            isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1
        ):
            problems.append(f"{where}: fraction is {fraction!r}; it must be a number from 0 to 1. Correct it.")
        if keep is not None and not (isinstance(keep, list) and all(isinstance(name, str) for name in keep)):
            problems.append(f"{where}: columns is {keep!r}; it must be a list of the columns to keep. Correct it.")
    fractions = [entry.get("fraction") for entry in entries]
    if None in fractions and any(fraction is not None for fraction in fractions):
        problems.append(
            f"datasets: entry {fractions.index(None) + 1} has no fraction and others have one; a mixture of shares "
            "needs one for each. Set it for all or for none."
        )
    if fractions and not any(fraction is None or fraction for fraction in fractions):
        problems.append("datasets: all fractions are 0, which leaves no rows to train on. Raise one.")
    return problems


def _test_problems(settings: Mapping[str, Any]) -> list[str]:
    size = settings["test_split_size"]
    if size is None:
        tests = [split for split in settings["dataset_splits"] or [] if split_use(split) == "test"]
        return _asked_twice("eval_dataset_name", tests) if settings["eval_dataset_name"] else []
    problems = []
    if not (0 < size < 1 or (size >= 1 and isinstance(size, int))):
        problems.append(
            f"test_split_size is {size}; it must be a share between 0 and 1 or a whole number of pairs. Correct it."
        )
    named = [key for key in ("dataset_test_split", "eval_dataset_name") if settings[key]]
    named += [split for split in settings["dataset_splits"] or [] if split_use(split) == "test"]
    return problems + _asked_twice("test_split_size", named)


def _asked_twice(key: str, others: list[str]) -> list[str]:
    if not others:
        return []
    return [f"{key} and {', '.join(others)} both give evaluation pairs; they come from one place. Remove one."]


def _streaming_problems(settings: Mapping[str, Any]) -> list[str]:
    if not settings["streaming"]:
        return []
    problems = []
    for name, fraction in (settings["dataset_mixer"] or {}).items():
        if 0 < fraction < 1:
            problems.append(
                f"streaming does not tell how many rows {name} has, and its fraction {fraction} needs their number. "
                "Set the fraction to 1, or remove streaming."
            )
    if any(entry.get("fraction") is not None for entry in settings["datasets"] or []):
        problems.append(
            "streaming does not tell how many rows a source has, and the fractions in datasets need their numbers. "
            "Remove the fractions, or remove streaming."
        )
    size = settings["test_split_size"]
    if size is not None and 0 < size < 1:
        problems.append(
            f"streaming does not tell how many pairs there are, and test_split_size {size} is a share of them. Set "
            "test_split_size to a number of pairs, or remove streaming."
        )
    return problems


def _column_problems(settings: Mapping[str, Any]) -> list[str]:
    columns = settings["columns"] or {}
    problems = [
        f"columns: {name!r} is not a field of a pair.{_meant(name, NAMED_FIELDS)} Give a field as the key, and its "
        "place in the rows as the value."
        for name in columns
        if name not in NAMED_FIELDS
    ]
    problems += [
        f"columns: {name} is {place!r}; it must be the place of the field, as text. Correct it."
        for name, place in columns.items()
        if name in NAMED_FIELDS and name != "answers" and not isinstance(place, str)
    ]
    return problems or _answer_problems(columns)


def _answer_problems(columns: Mapping[str, Any]) -> list[str]:
    """Problems with what `columns` says of two answers and the better one."""
    answers, how = columns.get("answers"), "Write it as {0: first_column, 1: second_column}, with null for a tie."
    if answers is None:
        if "better" in columns:
            return [f"columns: better is set without answers, which say what its values mean. {how}"]
        return []
    if not isinstance(answers, Mapping):
        return [f"columns: answers is {answers!r}; it must map each value of better to the better answer. {how}"]
    if rivals := [name for name in ("chosen", "rejected", "responses", "scores", "ranks") if name in columns]:
        return [f"columns: answers stand beside {' and '.join(rivals)}, which say the same otherwise. Remove one."]
    if any(plain(key) is None for key in answers) or any(
        path is not None and not isinstance(path, str) for path in answers.values()
    ):
        return [f"columns: answers is {answers}; its keys are values, and what they map to is a column or null. {how}"]
    if len({path for path in answers.values() if path}) != 2:
        return [f"columns: answers is {answers}; it must name two different answers. {how}"]
    if len({plain(key) for key in answers}) < len(answers):
        return [f"columns: answers has a value twice (true is 1, and letters may be small or large). {how}"]
    if "better" not in columns and (len(answers) != 2 or {*map(plain, answers)} & {0.0, 1.0, *SIGNS}):
        return [
            f"columns: answers is {answers} without better, the column that has these values. Set it; or, where each "
            "answer has a score, give the column of the score as the key, for both."
        ]
    return []


def _meant(name: str, known: Sequence[str]) -> str:
    return did_you_mean(name, known, 1) or f" It must be one of {', '.join(known)}."
