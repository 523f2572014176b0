"""Reading one source: a file, a folder, a dataset of the Hub; and what is said when it cannot be read."""

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

from pair_files import ROWS, load, write
from simpo_trainer.data import sources
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.sources import Source, load_splits, pick_split, readable_rows
from simpo_trainer.errors import SimPOError
from toy import toy_pairs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


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


def test_sound_file_is_not_read_a_second_time(tmp_path, monkeypatch):
    def fail(path):
        raise AssertionError("searched a sound file for broken lines")

    monkeypatch.setattr(sources, "broken_place", fail)
    load(write(tmp_path / "pairs.jsonl"))


def test_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pairs.jsonl")
    assert len(load("~/pairs.jsonl")[0]) == len(ROWS)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["pairs.csv", "folder/train.csv"])
def test_text_of_a_csv_is_read_as_it_is_written(tmp_path, name, streaming):
    answers = ["NA", "None", "null", "N/A", "nan", "5", "007", "1e3", "true", "2020-01-01", ""]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("question,good,rejected,margin\n" + "".join(f'"{i}?",{a},1,0.5\n' for i, a in enumerate(answers)))
    source = path.parent if "/" in name else path
    columns = {"prompt": "question", "chosen": "good"}
    train = load_preferences(DataConfig(str(source), columns=columns, streaming=streaming))[0]
    expected = [{"prompt": f"{i}?", "chosen": a, "rejected": "1", "margin": 0.5} for i, a in enumerate(answers)]
    assert sorted(train, key=lambda row: int(row["prompt"][:-1])) == expected
    named = load_splits(Source("csv", data_files=str(path)), streaming=streaming)["train"]
    assert [row["good"] for row in named] == answers


def test_margin_of_a_csv_that_is_no_number(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,margin\na,b,c,0.5\na,b,c,\n")
    with pytest.raises(SimPOError, match=r"pairs.csv: a row has the margin ''; it must be a number"):
        load(tmp_path / "pairs.csv")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_answers_that_look_like_dates_are_text(tmp_path, suffix, streaming):
    rows = [{"prompt": "When?", "chosen": f"2020-01-0{i}", "rejected": f"2020-01-0{i}T10:00:00Z"} for i in range(1, 4)]
    path = write(tmp_path / f"texts{suffix}", rows)
    splits = load_splits(Source(path), streaming=streaming)
    assert list(splits["train"]) == rows
    assert splits["train"].features["chosen"].dtype == "string"
    rows = [{key: [{"role": "user", "content": text}] for key, text in row.items()} for row in rows]
    assert list(load_splits(Source(write(tmp_path / f"chat{suffix}", rows)), streaming=streaming)["train"]) == rows


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "5"}}}
# What the last rows of a file have in another way than those before.
LATE = {
    "margin": ({"margin": 1}, {"margin": 0.5}),
    "null": ({"tools": None}, {"tools": [CALL]}),
    "absent": ({}, {"tools": [CALL]}),
    "other keys": (
        {"chosen": [{"role": "assistant", "content": "a"}]},
        {"chosen": [{"role": "assistant", "content": "a", "tool_calls": [CALL]}]},
    ),
}


def late_rows(kind):
    """Rows of which the first fill more than what a loader guesses types from."""
    early, late = LATE[kind]
    return [{"prompt": "p" * 2_000_000, "chosen": "a", "rejected": "b", **(early if i < 6 else late)} for i in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATE)
def test_types_that_show_late_in_a_file(tmp_path, kind):
    rows = late_rows(kind)
    path = write(tmp_path / "pairs.jsonl", rows)
    found = load_splits(Source(path))["train"].to_list()
    assert [{key: value for key, value in row.items() if value is not None} for row in found] == [
        {key: value for key, value in row.items() if value is not None} for row in rows
    ]
    stream = load_splits(Source(path), streaming=True)["train"]
    with pytest.raises(SimPOError, match=r"pairs.jsonl, line 7: .*Remove streaming"):
        list(readable_rows(stream, "stream"))
    with pytest.raises(SimPOError, match="pairs.jsonl, line 7: "):
        load(write(tmp_path / "train.jsonl"), eval_dataset_name=path, streaming=True)


def test_types_that_differ_between_files_are_named(tmp_path):
    write(tmp_path / "train.jsonl", [{"margin": 1, **row} for row in ROWS])
    write(tmp_path / "test.jsonl", [{"margin": 0.5, **row} for row in ROWS])
    with pytest.raises(
        SimPOError,
        match=r"Column 'margin' holds numbers with a fraction in .*test.jsonl and whole numbers in train.jsonl",
    ):
        load(tmp_path)


def test_error_of_a_named_file_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"chosen": "a"}\n{"chosen"\n')
    with pytest.raises(SimPOError, match="a.jsonl, line 2: not valid JSON"):
        load_splits(Source("json", data_files=str(tmp_path / "a.jsonl")))


# --- What is said -----------------------------------------------------------------------------------------------------


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
    with pytest.raises(SimPOError, match=r"pairs.csv, line 3: 4 fields, and the header has 2"):
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


def test_hub_dataset_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SimPOError, match="'someone/some-pairs' is neither a file or folder here nor .* from the Hub"):
        load("someone/some-pairs")


# --- Parts, streams, named files --------------------------------------------------------------------------------------


def test_part_of_a_split_in_the_notation_of_datasets(tmp_path):
    path = write(tmp_path / "pairs.jsonl")
    assert load(path, dataset_train_split="train[1:3]")[0].to_list() == ROWS[1:3]
    assert load(path, dataset_train_split="train[75%:]+train[:25%]")[0].to_list() == [ROWS[3], ROWS[0]]
    with pytest.raises(SimPOError, match=r"has no split 'trian\[:2\]'; it has 'train'"):
        load(path, dataset_train_split="trian[:2]")
    with pytest.raises(SimPOError, match=r"has no split 'train\[:2\]'.*A part of a split cannot be streamed"):
        load(path, dataset_train_split="train[:2]", streaming=True)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.csv", "pairs.parquet", "folder/train.jsonl"])
def test_streams_give_the_rows_of_the_file(tmp_path, name):
    path = write(tmp_path / name)
    splits = load_splits(Source(str(tmp_path / "folder") if "/" in name else path), streaming=True)
    assert isinstance(splits["train"], datasets.IterableDataset)
    assert list(splits["train"]) == ROWS


def test_stream_of_a_folder_saved_to_disk(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows = load_splits(Source(str(tmp_path / "saved")), streaming=True)["train"]
    assert isinstance(rows, datasets.IterableDataset)
    assert list(rows) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
def test_split_without_rows(streaming):
    rows = Dataset.from_list(ROWS)
    splits = {"train": rows.to_iterable_dataset().skip(len(ROWS)) if streaming else rows.select([])}
    with pytest.raises(SimPOError, match="Split 'train' of org/pairs has no rows"):
        pick_split(splits, "train", Source("org/pairs"), "dataset_train_split")


def test_named_files_of_a_folder(tmp_path):
    write(tmp_path / "sub" / "a.jsonl", ROWS[:1])
    write(tmp_path / "sub" / "b.jsonl", ROWS[1:])
    rows = load_splits(Source(str(tmp_path), data_dir="sub", data_files="b.jsonl"))["train"]
    assert rows.to_list() == ROWS[1:]
    rows = load_splits(Source("json", data_files={"test": str(tmp_path / "sub" / "a.jsonl")}))["test"]
    assert rows.to_list() == ROWS[:1]
    with pytest.raises(SimPOError, match="could not be read|neither a file or folder here"):
        load_splits(Source(str(tmp_path), data_files="c.jsonl"))


def test_configuration_of_a_file_is_refused(tmp_path):
    with pytest.raises(SimPOError, match="is a file and has no configurations; found 'en'"):
        load(write(tmp_path / "pairs.jsonl"), dataset_config="en")


def test_public_names_hold_no_path(tmp_path):
    path = write(tmp_path / "pairs.jsonl")
    names = {name: Source(name).public_name() for name in (path, str(tmp_path), "json", "./x", "~/x", "a/b/c", "x.csv")}
    assert names.pop(str(tmp_path)) == "local folder"
    assert set(names.values()) == {"local file"}
    assert Source("org/some-pairs_v1.0").public_name() == "org/some-pairs_v1.0"
