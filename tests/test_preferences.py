"""Loading and checking of preference rows: what is read, and what is said when it cannot be."""

import dataclasses
import json

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

from simpo_trainer import preferences
from simpo_trainer.errors import SimPOError
from simpo_trainer.preferences import (
    DataConfig,
    check_columns,
    check_margins,
    load_preferences,
)
from toy import toy_pairs

ROWS = toy_pairs(4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path, rows=ROWS):
    """Writes rows in the format that the file name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)
    return str(path)


def load(name, **config):
    return load_preferences(DataConfig(dataset_name=str(name), **config))


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_file_gives_its_rows_in_order_and_no_evaluation_set(tmp_path, suffix):
    train, test = load(write(tmp_path / f"pairs{suffix}"))
    assert train.to_list() == ROWS
    assert test is None


def test_conversations_survive_loading(tmp_path):
    rows = toy_pairs(3, conversational=True)
    train, _ = load(write(tmp_path / "pairs.jsonl", rows))
    assert train.to_list() == rows


def test_folder_gives_the_splits_of_its_file_names(tmp_path):
    write(tmp_path / "data" / "train.jsonl", ROWS[:3])
    write(tmp_path / "data" / "test.jsonl", ROWS[3:])
    train, test = load(tmp_path / "data")
    assert (train.to_list(), test.to_list()) == (ROWS[:3], ROWS[3:])
    train, test = load(tmp_path / "data", dataset_train_split="test", dataset_test_split="train")
    assert (train.to_list(), test.to_list()) == (ROWS[3:], ROWS[:3])


def test_folder_without_test_split_has_no_evaluation_set(tmp_path):
    write(tmp_path / "data" / "train.jsonl")
    assert load(tmp_path / "data")[1] is None
    with pytest.raises(SimPOError, match="no split 'test'; it has 'train'. Set dataset_test_split to one of these, or"):
        load(tmp_path / "data", dataset_test_split="test")


def test_saved_to_disk(tmp_path):
    DatasetDict(prefs=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:])).save_to_disk(tmp_path / "dict")
    train, test = load(tmp_path / "dict", dataset_train_split="prefs")
    assert (train.to_list(), test.to_list()) == (ROWS[:3], ROWS[3:])
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "lone")
    train, test = load(tmp_path / "lone")
    assert (train.to_list(), test) == (ROWS, None)


def test_evaluation_pairs_of_their_own_source(tmp_path):
    train_file, test_file = write(tmp_path / "a.jsonl", ROWS[:3]), write(tmp_path / "b.csv", ROWS[3:])
    assert load(train_file, eval_dataset_name=test_file)[1].to_list() == ROWS[3:]
    write(tmp_path / "data" / "train.jsonl", ROWS[:1])
    write(tmp_path / "data" / "test.jsonl", ROWS[1:2])
    folder = str(tmp_path / "data")
    assert load(train_file, eval_dataset_name=folder)[1].to_list() == ROWS[1:2]
    assert load(train_file, eval_dataset_name=folder, dataset_test_split="train")[1].to_list() == ROWS[:1]
    with pytest.raises(SimPOError, match=r"b\.csv has no split 'validation'; it has 'train'"):
        load(train_file, eval_dataset_name=test_file, dataset_test_split="validation")


def test_sound_file_is_not_read_a_second_time(tmp_path, monkeypatch):
    def fail(path):
        raise AssertionError("searched a sound file for broken lines")

    monkeypatch.setattr(preferences, "_broken_text", fail)
    load(write(tmp_path / "pairs.jsonl"))


def test_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pairs.jsonl")
    assert len(load("~/pairs.jsonl")[0]) == len(ROWS)


# --- What is said -----------------------------------------------------------------------------------------------------


def test_unset_name():
    with pytest.raises(SimPOError, match="dataset_name is not set"):
        load_preferences(DataConfig())


def test_missing_file_names_near_ones(tmp_path):
    write(tmp_path / "preferences.jsonl")
    with pytest.raises(SimPOError, match=r"prefernces.jsonl does not exist. Near names in .*: preferences.jsonl"):
        load(tmp_path / "prefernces.jsonl")
    with pytest.raises(SimPOError, match=r"zzz.jsonl does not exist. .* holds preferences.jsonl"):
        load(tmp_path / "zzz.jsonl")


def test_missing_folder(tmp_path):
    with pytest.raises(SimPOError, match=r"no/such does not exist. Its folder .* does not exist either"):
        load(tmp_path / "no" / "such")


def test_unknown_extension(tmp_path):
    (tmp_path / "pairs.txt").write_text("text")
    with pytest.raises(SimPOError, match=r"ends in '.txt'; a dataset file must end in .json, .jsonl, .parquet, .csv"):
        load(tmp_path / "pairs.txt")


def test_folder_without_dataset_files(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(SimPOError, match="holds no dataset file and is no `save_to_disk` folder.*notes.txt"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.parquet"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SimPOError, match=f"{name} is empty"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    "name, text", [("pairs.jsonl", "\n\n"), ("pairs.csv", "chosen,rejected\n"), ("pairs.json", "[]")]
)
def test_file_without_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SimPOError, match=r"pairs\.\w+ has no rows"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    "broken, found",
    [
        (b'{"chosen": "a", "rej', "line 4: not valid JSON"),
        (b'["a", "b"]', "line 4: a list where a row"),
        (b'{"chosen": "\xe9", "rejected": "b"}', "line 4: not UTF-8"),
    ],
)
def test_broken_line_is_named(tmp_path, broken, found):
    good = b'{"chosen": "a", "rejected": "b"}\n'
    (tmp_path / "pairs.jsonl").write_bytes(good + b"\n" + good + broken + b"\n" + good)
    with pytest.raises(SimPOError, match=rf"pairs.jsonl, {found}"):
        load(tmp_path / "pairs.jsonl")


def test_broken_array_names_the_line(tmp_path):
    (tmp_path / "pairs.json").write_text('[\n{"chosen": "a", "rejected": "b"},\n{"chosen": }\n]')
    with pytest.raises(SimPOError, match=r"pairs.json, line 3: not valid JSON"):
        load(tmp_path / "pairs.json")


def test_broken_csv_and_parquet(tmp_path):
    (tmp_path / "pairs.csv").write_text("chosen,rejected\na,b\nc,d,e,f\n")
    with pytest.raises(SimPOError, match=r"pairs.csv cannot be read as csv: .*line 3"):
        load(tmp_path / "pairs.csv")
    (tmp_path / "pairs.parquet").write_bytes(b"no parquet")
    with pytest.raises(SimPOError, match=r"pairs.parquet cannot be read as parquet: Parquet magic bytes"):
        load(tmp_path / "pairs.parquet")


def test_broken_lines_of_a_json_file_are_named(tmp_path):
    (tmp_path / "pairs.json").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": }\n')
    with pytest.raises(SimPOError, match=r"pairs.json, line 2: not valid JSON"):
        load(tmp_path / "pairs.json")


def test_broken_file_in_a_folder_is_named(tmp_path):
    write(tmp_path / "train.jsonl")
    (tmp_path / "dataset_infos.json").write_text('{\n  "default": {}\n}')  # sound, though not in lines
    (tmp_path / "test.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen"\n')
    with pytest.raises(SimPOError, match=r"test.jsonl, line 2: not valid JSON"):
        load(tmp_path)


def test_broken_save_to_disk_folder(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(SimPOError, match="written by save_to_disk but cannot be read"):
        load(tmp_path / "saved")


def test_unknown_splits_name_the_available_ones(tmp_path):
    write(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl")
    with pytest.raises(SimPOError, match="no split 'train_prefs'; it has 'train', 'test'. Set dataset_train_split"):
        load(tmp_path, dataset_train_split="train_prefs")
    with pytest.raises(SimPOError, match="no split 'test_prefs'; it has 'train', 'test'. Set dataset_test_split"):
        load(tmp_path, dataset_test_split="test_prefs")


def test_missing_columns_name_what_was_found_and_near_names(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "choosen": "a", "rejected": "b"}])
    with pytest.raises(SimPOError, match=r"'chosen' missing; .*'prompt', 'choosen', 'rejected'.*is 'choosen' meant"):
        load(path)
    with pytest.raises(SimPOError, match="train: column 'chosen' and 'rejected' missing; the columns are 'text'"):
        check_columns(Dataset.from_dict({"text": ["a"]}), "train")


def test_missing_columns_of_the_evaluation_set_are_found(tmp_path):
    write(tmp_path / "a" / "pairs.jsonl")
    other = write(tmp_path / "b" / "pairs.jsonl", [{"text": "x"}])
    with pytest.raises(SimPOError, match=r"b/pairs.jsonl: column 'chosen' and 'rejected' missing"):
        load(tmp_path / "a" / "pairs.jsonl", eval_dataset_name=other)


def test_prompt_column_is_optional():
    check_columns(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]}), "train")


def test_hub_dataset_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SimPOError, match="'someone/some-pairs' is neither a file or folder here nor .* from the Hub"):
        load("someone/some-pairs")


@pytest.mark.parametrize("margin", [-0.5, float("nan"), float("inf"), None, "1", True])
def test_margins_that_are_none_name_the_row(margin):
    first = {"1": "0", True: False}.get(margin, 1.0)
    dataset = Dataset.from_dict({"margin": [first, margin]})
    bad_row = 0 if isinstance(first, str | bool) else 1
    with pytest.raises(SimPOError, match=f"the margin of row {bad_row} is .*must be a finite number"):
        check_margins(dataset, "train")
    check_margins(Dataset.from_dict({"margin": [0, 2]}), "train")


def test_every_key_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(DataConfig))
