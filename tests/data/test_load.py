"""Loading of preference pairs: settings to a training and a test set, and what is said of bad settings and rows."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from pair_files import ROWS, load, write
from simpo_trainer.data.fields import check_columns, check_margins
from simpo_trainer.data.load import DataConfig, data_problems, describe_sources, load_preferences
from simpo_trainer.errors import SimPOError
from toy import toy_pairs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(seed=42, **config):
    return load_preferences(DataConfig(**config), seed)


MANY = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(100)]


def sources(tmp_path):
    """A file of 100 pairs, and a folder with 100 training and 10 test pairs."""
    file = write(tmp_path / "a.jsonl", MANY)
    write(tmp_path / "b" / "train.jsonl", [{"extra": 1, **row} for row in MANY])
    write(tmp_path / "b" / "test.jsonl", MANY[:10])
    return file, str(tmp_path / "b")


# --- Mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mixer_takes_first_rows_of_training_splits_and_whole_test_splits(tmp_path):
    a, b = sources(tmp_path)
    for _ in range(2):  # the second time from the cache
        train, test = read(dataset_mixer={a: 0.29, b: 0.5})
        assert train.to_list() == MANY[:29] + MANY[:50]
        assert test.to_list() == MANY[:10]
    assert read(seed=7, dataset_mixer={a: 0.29, b: 0.5})[0].to_list() == train.to_list()
    assert read(dataset_mixer={a: 1, b: 0})[0].to_list() == MANY
    assert read(dataset_mixer={a: 1, b: 1}, dataset_splits=["train"])[1] is None
    assert read(dataset_mixer={a: 1, b: 0})[1].to_list() == MANY[:10]  # tests do not follow the fractions


def test_splits_of_a_mixer_are_used_by_their_names(tmp_path):
    for source in "ab":
        names = ["train_sft", "train_prefs", "test_prefs", "validation"]
        splits = {name: Dataset.from_list(MANY[10 * i : 10 * i + 10]) for i, name in enumerate(names)}
        DatasetDict(splits).save_to_disk(tmp_path / source)
    mixer = {str(tmp_path / "a"): 0.5, str(tmp_path / "b"): 0.1}
    train, test = read(dataset_mixer=mixer, dataset_splits=["train_prefs", "test_prefs"])
    assert train.to_list() == MANY[10:15] + MANY[10:11]
    assert test.remove_columns("source").to_list() == MANY[20:30] * 2
    train, test = read(dataset_mixer=mixer, dataset_splits=["train_sft", "train_prefs"])
    assert (train.to_list(), test) == (MANY[:5] + MANY[10:15] + MANY[:1] + MANY[10:11], None)
    assert len(read(dataset_mixer=mixer, dataset_splits=["train_sft", "validation"])[1]) == 20
    message = "/a has no split 'train_all'; it has .*'train_prefs'.*Set dataset_splits to one of these"
    with pytest.raises(SimPOError, match=message):
        read(dataset_mixer=mixer, dataset_splits=["train_all"])


def test_every_source_has_its_configuration(tmp_path):
    a, b = sources(tmp_path)
    for name in ("en", "de"):
        write(tmp_path / "c" / f"{name}.jsonl", MANY[:5] if name == "en" else MANY[5:7])
    parts = [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("en", "de")]
    (tmp_path / "c" / "README.md").write_text(f"---\nconfigs: {json.dumps(parts)}\n---\n")
    train, _ = read(dataset_mixer={a: 0.01, str(tmp_path / "c"): 1}, dataset_configs=[None, "de"])
    assert train.to_list() == MANY[:1] + MANY[5:7]
    assert read(dataset_name=str(tmp_path / "c"), dataset_config="en")[0].to_list() == MANY[:5]
    with pytest.raises(SimPOError, match="is a file and has no configurations; found 'en'"):
        read(dataset_mixer={a: 1, b: 1}, dataset_configs=["en", None])


@pytest.mark.slow
def test_list_of_datasets_takes_shares(tmp_path):
    a, b = sources(tmp_path)
    entries = [{"path": a, "fraction": 0.25}, {"path": b, "split": "train", "fraction": 0.75}]
    for seed in (1, 2):
        train, test = read(seed=seed, datasets=entries)
        assert (train.to_list(), test) == (MANY[:33] + MANY, None)
    assert len(read(datasets=[{"path": a}, {"path": b, "split": "test"}])[0]) == 110
    assert read(datasets=[{"path": b, "data_files": "test.jsonl", "split": "train[:3]"}])[0].to_list() == MANY[:3]
    assert read(datasets=[{"path": a}], eval_dataset_name=b)[1].to_list() == MANY[:10]
    entry = {"path": a, "columns": ["prompt", "chosen"]}
    with pytest.raises(SimPOError, match="column 'rejected' missing; the columns are 'prompt', 'chosen'"):
        read(datasets=[entry])
    with pytest.raises(SimPOError, match="keeps column 'text', but the columns are 'prompt', 'chosen', 'rejected'"):
        read(datasets=[{"path": a, "columns": ["text"]}])


def test_the_same_source_twice(tmp_path):
    a, _ = sources(tmp_path)
    assert len(read(datasets=[{"path": a}, {"path": a}])[0]) == 200


def test_fractions_that_leave_no_row(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(SimPOError, match=r"fractions of Split 'train' of .*a.jsonl leave no row of 4 to train on"):
        read(dataset_mixer={path: 0.2})


def test_source_that_gives_no_row_beside_others(tmp_path, caplog):
    caplog.set_level("INFO", logger="simpo_trainer")
    rows = [{"instruction": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows)
    assert len(read(dataset_mixer={a: 0.2, b: 1})[0]) == 4
    assert "a.jsonl: 0 of 4 rows" in caplog.text


# --- Test splits ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_test_split_is_carved_off_the_training_pairs(tmp_path):
    a, b = sources(tmp_path)
    train, test = read(dataset_name=b, test_split_size=0.15)
    assert (len(train), len(test)) == (85, 15)
    order = {row["prompt"]: number for number, row in enumerate(MANY)}
    assert sorted(train.to_list() + test.to_list(), key=lambda row: order[row["prompt"]]) == MANY
    again, other = read(dataset_name=b, test_split_size=0.15), read(seed=1, dataset_name=b, test_split_size=0.15)
    assert (again[0]._fingerprint, again[1].to_list()) == (train._fingerprint, test.to_list())
    assert other[1].to_list() != test.to_list()
    train, test = read(dataset_mixer={a: 0.5, b: 0.5}, test_split_size=20)
    assert (len(train), len(test)) == (80, 20)


def test_pairs_to_evaluate_on_say_where_they_come_from(tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder / "test.jsonl", MANY[:3])
        write(tmp_path / folder / "train.jsonl", MANY)
    x, y = str(tmp_path / "x"), str(tmp_path / "y")
    assert read(dataset_mixer={x: 1, y: 1})[1]["source"][:] == ["x, test"] * 3 + ["y, test"] * 3
    files = [{"path": f"{folder}/test.jsonl"} for folder in (x, y)]
    train, test = read(datasets=files, test_split_size=3)
    assert set(test["source"]) <= {"x/test.jsonl, train", "y/test.jsonl, train"} and "source" not in train.column_names
    assert "source" not in read(dataset_name=x)[1].column_names  # one says nothing
    own = [{**row, "source": None if i % 3 == 0 else "abc"[i % 2]} for i, row in enumerate(MANY)]
    file = write(tmp_path / "own.jsonl", own)
    test = read(dataset_name=file, test_split_size=20)[1]
    said = {row["prompt"]: row["source"] or "own.jsonl, train" for row in own}
    assert [said[prompt] for prompt in test["prompt"]] == test["source"][:] and len(set(test["source"])) == 3
    numbers = write(tmp_path / "numbers.jsonl", [{**row, "source": i} for i, row in enumerate(MANY)])
    assert "source" not in read(dataset_name=numbers, test_split_size=20)[1].column_names
    assert read(datasets=files, test_split_size=2, streaming=True)[1].column_names == ["prompt", "chosen", "rejected"]


# --- Streams ----------------------------------------------------------------------------------------------------------


def in_order(rows):
    """The rows of a stream, which comes shuffled."""
    return sorted(rows, key=lambda row: row["prompt"])


def test_streams(tmp_path):
    a, b = sources(tmp_path)
    train, test = read(dataset_mixer={a: 1, b: 1.0}, streaming=True)
    assert isinstance(train, datasets.IterableDataset)
    assert in_order(train) == in_order(MANY * 2)
    assert isinstance(test, Dataset)  # evaluation needs their number
    assert test.to_list() == MANY[:10]
    train, test = read(dataset_name=a, test_split_size=7, streaming=True)
    assert (in_order(train), test.to_list()) == (in_order(MANY[7:]), MANY[:7])
    train, test = read(datasets=[{"path": a}], streaming=True)
    assert (in_order(train), test) == (in_order(MANY), None)
    with pytest.raises(SimPOError, match="column 'chosen' and 'rejected' missing; the columns are 'text'"):
        read(dataset_name=write(tmp_path / "text.jsonl", [{"text": "x"}]), streaming=True)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "dataset_name is not set"),
        ({"dataset_name": "a", "datasets": [{"path": "b"}]}, "dataset_name and datasets are given; .* exactly one"),
        ({"dataset_mixer": {"a": -0.1}}, r"the fraction of a is -0.1; it must be from 0 to 1"),
        ({"dataset_mixer": {"a": 1, "b": 1.01}}, r"the fraction of b is 1.01; it must be from 0 to 1"),
        ({"dataset_mixer": {"a": float("nan")}}, r"the fraction of a is nan; it must be from 0 to 1"),
        ({"dataset_mixer": {"a": 0, "b": 0.0}}, "all fractions are 0, which leaves no rows"),
        ({"dataset_mixer": {"a": 1}, "dataset_configs": ["x", None]}, "dataset_configs has 2 entries .* has 1 sources"),
        ({"dataset_mixer": {"a": 1}, "dataset_splits": ["train", "prefs"]}, "dataset_splits: 'prefs' tells neither"),
        ({"dataset_mixer": {"a": 1}, "dataset_splits": ["test"]}, "dataset_splits names no training split"),
        ({"dataset_mixer": {"a": 1}, "dataset_splits": []}, "dataset_splits names no training split"),
        (
            {"dataset_mixer": {"a": 1}, "dataset_train_split": "b"},
            "dataset_train_split is set but belongs to dataset_name",
        ),
        ({"dataset_mixer": {"a": 1}, "dataset_test_split": "b"}, "dataset_test_split is set.* Use dataset_splits"),
        ({"dataset_name": "a", "dataset_splits": ["train"]}, "dataset_splits is set but belongs to dataset_mixer"),
        ({"datasets": [{"path": "a"}, {"split": "train"}]}, "entry 2: path is None; it must name"),
        ({"datasets": [{"path": "a", "fractoin": 1}]}, "entry 1: unknown key 'fractoin'. Did you mean fraction?"),
        ({"datasets": [{"path": "a", "fraction": 1.5}]}, "entry 1: fraction is 1.5; it must be a number from 0 to 1"),
        ({"datasets": [{"path": "a", "fraction": "x"}]}, "entry 1: fraction is 'x'; it must be a number from 0 to 1"),
        ({"datasets": [{"path": "a", "fraction": 1}, {"path": "b"}]}, "entry 2 has no fraction and others have one"),
        ({"datasets": [{"path": "a", "fraction": 0}]}, "datasets: all fractions are 0"),
        ({"datasets": [{"path": "a", "columns": "chosen"}]}, "columns is 'chosen'; it must be a list"),
        (
            {"dataset_name": "a", "test_split_size": 1.0},
            "test_split_size is 1.0; it must be a share between 0 and 1 or",
        ),
        ({"dataset_name": "a", "test_split_size": 0}, "test_split_size is 0; it must be"),
        ({"dataset_name": "a", "test_split_size": -3}, "test_split_size is -3; it must be"),
        ({"dataset_name": "a", "test_split_size": 0.1, "dataset_test_split": "b"}, "and dataset_test_split both give"),
        ({"dataset_name": "a", "test_split_size": 0.1, "eval_dataset_name": "b"}, "and eval_dataset_name both give"),
        (
            {"dataset_mixer": {"a": 1}, "dataset_splits": ["train", "test_x"], "test_split_size": 0.1},
            "test_split_size and test_x both give evaluation pairs",
        ),
        (
            {"dataset_mixer": {"a": 1}, "dataset_splits": ["train", "test_x"], "eval_dataset_name": "b"},
            "eval_dataset_name and test_x both give evaluation pairs",
        ),
        (
            {"dataset_mixer": {"a": 0.5}, "streaming": True},
            "streaming does not tell how many rows a has.*fraction to 1",
        ),
        (
            {"datasets": [{"path": "a", "fraction": 1}], "streaming": True},
            "the fractions in datasets need their numbers",
        ),
        ({"dataset_name": "a", "test_split_size": 0.1, "streaming": True}, "test_split_size 0.1 is a share of them"),
        ({"dataset_name": "a", "columns": {"promt": "q"}}, "columns: 'promt' is not a field .* Did you mean prompt?"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(SimPOError, match=message):
        read(**config)
    [problem] = data_problems(config)
    assert problem.endswith(".")


@pytest.mark.parametrize(
    "config",
    [
        {
            "dataset_name": "a",
            "unknown": 1,
            "dataset_train_split": "b",
            "dataset_test_split": "c",
            "test_split_size": None,
        },
        {"dataset_mixer": {"a": 1, "b": 0.5}, "dataset_configs": ["x", None], "dataset_splits": ["train_x", "eval_x"]},
        {"dataset_mixer": {"a": 1, "b": 0}, "streaming": True, "test_split_size": 5},
        {"datasets": [{"path": "a", "fraction": 0.1}, {"path": "b", "fraction": 0}], "eval_dataset_name": "c"},
        {"datasets": [{"path": "a"}], "eval_dataset_name": "c", "dataset_test_split": "d"},
        {"dataset_name": "a", "columns": {"prompt": "q.0", "margin": "gap"}, "test_split_size": 0.5},
    ],
)
def test_good_settings(config):
    assert data_problems(config) == []


def test_all_problems_are_told_at_once():
    config = {"dataset_mixer": {"a": 2, "b": -1}, "columns": {"x": "y"}}
    assert len(data_problems(config)) == 3
    with pytest.raises(SimPOError, match="(?s)of a is 2.*of b is -1.*'x' is not a field"):
        read(**config)


def test_description_of_the_sources_holds_no_path(tmp_path):
    a, b = sources(tmp_path)
    told = describe_sources(
        DataConfig(
            dataset_mixer={a: 0.5, b: 1, "org/pairs": 0.1, "org/none": 0},
            dataset_configs=[None, None, "en", None],
            dataset_splits=["train_prefs", "test_prefs"],
        )
    )
    assert str(tmp_path) not in str(told)
    assert told[0] == {"name": "local file", "config": None, "split": "train_prefs", "fraction": 0.5, "use": "train"}
    assert told[2] == {"name": "org/pairs", "config": "en", "split": "train_prefs", "fraction": 0.1, "use": "train"}
    assert [(part["name"], part["split"]) for part in told[3:]] == [
        (name, "test_prefs") for name in ("local file", "local folder", "org/pairs", "org/none")
    ]
    listed = describe_sources(DataConfig(datasets=[{"path": "json", "data_files": a}], eval_dataset_name=b))
    assert [part["name"] for part in listed] == ["local file"]
    assert describe_sources(DataConfig(dataset_name="org/pairs", dataset_test_split="test"))[1]["use"] == "test"


# --- One source and its columns ---------------------------------------------------------------------------------------


def test_evaluation_pairs_of_their_own_source(tmp_path):
    train_file, test_file = write(tmp_path / "a.jsonl", ROWS[:3]), write(tmp_path / "b.csv", ROWS[3:])
    assert load(train_file, eval_dataset_name=test_file)[1].to_list() == ROWS[3:]
    write(tmp_path / "data" / "train.jsonl", ROWS[:1])
    write(tmp_path / "data" / "test.jsonl", ROWS[1:2])
    folder = str(tmp_path / "data")
    assert load(train_file, eval_dataset_name=folder)[1].to_list() == ROWS[1:2]
    assert load(train_file, eval_dataset_name=folder, dataset_test_split="train")[1].to_list() == ROWS[:1]
    with pytest.raises(SimPOError, match=r"b\.csv has no split 'validation'; it has 'train'.* or to null if eval_"):
        load(train_file, eval_dataset_name=test_file, dataset_test_split="validation")


def test_unset_name():
    with pytest.raises(SimPOError, match="dataset_name is not set"):
        load_preferences(DataConfig())


def test_missing_columns_name_what_was_found_and_near_names(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "choosen": "a", "rejected": "b"}])
    with pytest.raises(SimPOError, match=r"'chosen' missing; .*'choosen', 'rejected'.*columns: \{chosen: choosen\}"):
        load(path)
    missing = (
        "train: column 'chosen' and 'rejected' missing; the columns are 'text'. .*chosen: ITS_COLUMN, rejected: ITS"
    )
    with pytest.raises(SimPOError, match=missing):
        check_columns(["text"], "train")
    with pytest.raises(SimPOError, match=r"columns: \{chosen: Preferred, rejected: worst\}; in Python, rename"):
        check_columns(["prompt", "Preferred", "worst"], "train")
    with pytest.raises(SimPOError, match=r"columns: \{chosen: Preferred, rejected: ITS_COLUMN\}"):
        check_columns(["prompt", "Preferred"], "train")
    with pytest.raises(SimPOError, match=r"columns: \{scores: score\}; in Python"):
        check_columns(["prompt", "responses", "score"], "train")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_rows_of_one_conversation_name_the_method_for_them(column):
    with pytest.raises(SimPOError, match=f"Rows of '{column}' alone are one conversation each, .*--method sft"):
        check_columns([column, "id"], "train")
    with pytest.raises(SimPOError, match=r"columns: \{chosen: good, rejected: bad\}"):
        check_columns([column, "good", "bad"], "train")


def test_missing_columns_of_the_evaluation_set_are_found(tmp_path):
    write(tmp_path / "a" / "pairs.jsonl")
    other = write(tmp_path / "b" / "pairs.jsonl", [{"text": "x"}])
    with pytest.raises(SimPOError, match=r"b/pairs.jsonl: column 'chosen' and 'rejected' missing"):
        load(tmp_path / "a" / "pairs.jsonl", eval_dataset_name=other)


def test_prompt_column_is_optional():
    check_columns(["chosen", "rejected"], "train")


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


# --- Many rows --------------------------------------------------------------------------------------------------------

_MEASURED = """
import re, sys, time
from pathlib import Path
from simpo_trainer.data import DataConfig
from simpo_trainer.data.load import load_preferences
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import toy_tokenizer
def peak():  # of this program alone: what getrusage tells begins with the peak of the process that started it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
tokenizer = toy_tokenizer()
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
before = peak()
start = time.perf_counter()
train, _ = load_preferences(DataConfig(dataset_name=sys.argv[1]))
rows, _ = tokenize_preferences(train, tokenizer, RowSettings(max_length=512, max_prompt_length=256))
taken = time.perf_counter() - start
print(len(rows), peak() - before, taken)
"""


def measured(path, cache):
    """Rows, growth of the peak memory in MiB and seconds of a process that loads and tokenizes a file."""
    tests = Path(__file__).parents[1]
    environment = {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{tests.parent}:{tests / 'support'}", "PATH": "/usr/bin:/bin", "HOME": str(cache)}
    command = [sys.executable, "-c", _MEASURED, path]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows, growth, taken = output.split()[-3:]
    return int(rows), float(growth), float(taken)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_rows_and_a_second_run_reads_the_cache(tmp_path):
    few, many = 3_000, 30_000
    rows = [
        {
            "conversations": [{"from": "human", "value": row["prompt"] + " Why so?" * 8}],
            "chosen": {"from": "gpt", "value": row["chosen"]},
            "rejected": {"from": "gpt", "value": row["rejected"]},
        }
        for row in toy_pairs(many)
    ]
    paths = [write(tmp_path / f"{count}.jsonl", rows[:count]) for count in (few, many)]
    del rows
    small, large, again = (measured(path, tmp_path / "cache") for path in (paths[0], paths[1], paths[1]))
    assert (small[0], large[0], again[0]) == (few, many, many)
    print(
        f"growth {small[1]:.0f}, {large[1]:.0f}, {again[1]:.0f} MiB; {small[2]:.1f}, {large[2]:.1f}, {again[2]:.1f} s"
    )
    assert large[1] < small[1] + 50
    assert again[2] < large[2] / 3
