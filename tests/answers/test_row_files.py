"""Files of rows: whole or not at all, and what they cannot hold."""

import errno
import os

import pytest

from simpo_trainer import SimPOError
from simpo_trainer.answers.row_files import check_ending, check_parquet, read_rows, write_rows
from simpo_trainer.data.load import load_preferences
from simpo_trainer.data.settings import DataConfig

ROWS = [
    {"key": "1", "prompt": [{"role": "user", "content": "å\u2028"}], "n": [1, 2]},
    {"key": "2", "prompt": [{"role": "user", "content": "b"}], "n": [3], "more": "x"},
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rows_are_read_as_they_were_written(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    write_rows(path, ROWS)
    found = [{name: value for name, value in row.items() if value is not None} for row in read_rows(path)]
    assert found == ROWS
    before = path.read_bytes()
    write_rows(path, ROWS)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_half_of_a_character_can_be_written(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"key": "\ud800"}])
    assert read_rows(tmp_path / "rows.jsonl") == [{"key": "\ud800"}]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, ending):
    path = tmp_path / f"rows{ending}"
    write_rows(path, ROWS)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(SimPOError, match="the disk is full"):
        write_rows(path, ROWS[:1])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_parquet_refuses_a_column_of_mixed_types(tmp_path):
    rows = [{"n": 1}, {"n": "x"}]
    with pytest.raises(SimPOError, match=r"Parquet cannot hold a column .* ends in .jsonl"):
        check_parquet(tmp_path / "rows.parquet", rows)
    check_parquet(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"key": 1}\n{"key"', "line 2: not valid JSON"), ("[1]\n", "line 1: a list; each line must be an object")],
)
def test_a_broken_file_names_the_line(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(SimPOError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_what_is_no_file_of_rows_is_told(tmp_path):
    (tmp_path / "rows.parquet").write_text("no")
    wrong = {"no.jsonl": "does not exist", "rows.csv": "must end in", "rows.parquet": "cannot be read"}
    for name, message in wrong.items():
        with pytest.raises(SimPOError, match=message):
            read_rows(tmp_path / name)
    with pytest.raises(SimPOError, match="output is 'a.txt'; it must end in .jsonl or .parquet"):
        check_ending(tmp_path.relative_to(tmp_path) / "a.txt")


def test_the_loader_of_training_reads_both(tmp_path):
    pairs = [{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}]}]
    pairs[0]["rejected"] = [{"role": "assistant", "content": "c"}]
    for ending in (".jsonl", ".parquet"):
        write_rows(tmp_path / f"rows{ending}", pairs)
        train, _ = load_preferences(DataConfig(dataset_name=str(tmp_path / f"rows{ending}")))
        assert train[0] == pairs[0]
