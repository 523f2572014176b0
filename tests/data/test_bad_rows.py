"""Rows that cannot be read or used: the place is named, or they are left out and counted; a stream stays as it is."""

import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pair_files import write
from simpo_trainer.batches.stream import StreamedPairs
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.errors import SimPOError
from simpo_trainer.record.fingerprints import rows_fingerprint
from simpo_trainer.tokens.sets import token_set
from simpo_trainer.tokens.settings import RowSettings
from toy import toy_pairs, toy_tokenizer

ROWS = toy_pairs(60)
BAD = 49


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def break_row(path, how):
    """Breaks row 50 of a file of `ROWS`."""
    if path.suffix == ".parquet":
        table = pa.table({name: [row[name].encode() for row in ROWS] for name in ROWS[0]})
        chosen = table["chosen"].to_pylist()
        chosen[BAD] = b"\xe9"
        table = table.set_column(table.column_names.index("chosen"), "chosen", pa.array(chosen, pa.binary()))
        columns = {name: table[name].combine_chunks().view(pa.string()) for name in table.column_names}
        pq.write_table(pa.table(columns), path)
        return
    write(path, ROWS)
    if path.suffix == ".json":
        path.write_text("[" + ",\n".join(json.dumps(row) for row in ROWS) + "]")
    lines = path.read_bytes().splitlines(keepends=True)
    place = BAD + (path.suffix == ".csv")
    lines[place] = {
        "utf8": lines[place][:8] + b"\xe9" + lines[place][8:],
        "json": lines[place][:9] + b"\n",
        "fields": lines[place][:-1] + b",x,y\n",
        "type": json.dumps({**ROWS[BAD], "chosen": 5}).encode() + b"\n",
    }[how]
    path.write_bytes(b"".join(lines))


def train_rows(path, streaming=True, on_bad_row=None, **config):
    config = DataConfig(str(path), streaming=streaming, **config)
    return load_preferences(config, on_bad_row=on_bad_row)[0]


def prompts(rows):
    return sorted(row["prompt"] for row in rows)


BROKEN = {
    ("pairs.jsonl", "utf8"): "pairs.jsonl, line 50: not UTF-8",
    ("pairs.jsonl", "json"): "pairs.jsonl, line 50: not valid JSON",
    ("pairs.json", "utf8"): "pairs.json, line 50: not UTF-8",
    ("pairs.csv", "utf8"): "pairs.csv, line 51: not UTF-8",
    ("pairs.csv", "fields"): "pairs.csv, line 51: 5 fields, and the header has 3",
    ("pairs.parquet", "utf8"): "pairs.parquet, row 50: text that is not UTF-8",
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "how"), [pytest.param(*case, marks=[pytest.mark.slow] * case[0].endswith("parquet")) for case in BROKEN]
)
def test_a_row_that_cannot_be_read_is_named_or_left_out(tmp_path, caplog, name, how, streaming):
    path, said = tmp_path / name, BROKEN[name, how]
    break_row(path, how)
    with pytest.raises(SimPOError, match=said) as caught:
        list(train_rows(path, streaming))
    assert "\n" not in str(caught.value)
    if name == "pairs.json":
        with pytest.raises(SimPOError, match="on_bad_row: drop cannot leave out a row here.*write it as JSON Lines"):
            list(train_rows(path, streaming, "drop"))
        return
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert prompts(train_rows(path, streaming, "drop")) == prompts(ROWS[:BAD] + ROWS[BAD + 1 :])
        assert f"left out 1 of 60 rows that cannot be read; the first is {said.split(', ', 1)[1][:14]}" in caplog.text
    with pytest.raises(SimPOError, match=said):  # not what was cached without the row
        list(train_rows(path, streaming))


def test_rows_of_a_whole_file_keep_order_and_types_without_the_broken_ones(tmp_path):
    rows = [{**row, "margin": 1 if number < 30 else 0.5, "note": None} for number, row in enumerate(ROWS)]
    sound = train_rows(write(tmp_path / "sound.jsonl", rows), streaming=False)
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join([lines[0], "{", *lines[1:], "[1]"]))
    found = train_rows(tmp_path / "pairs.jsonl", streaming=False, on_bad_row="drop")
    assert found.to_list() == sound.to_list()
    assert found.features == sound.features


def test_a_late_row_of_another_type_in_a_stream(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("simpo_trainer.data.watched._PIECE", 400)
    break_row(tmp_path / "pairs.jsonl", "type")
    assert prompts(train_rows(tmp_path / "pairs.jsonl", True, "drop")) == prompts(ROWS[:BAD] + ROWS[BAD + 1 :])
    assert "line 50: 'chosen' is 5" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_which_most_rows_are_broken(tmp_path, streaming):
    good = json.dumps(ROWS[0])
    (tmp_path / "pairs.jsonl").write_text("\n".join([good, "{", "{", good, "{"]))
    with pytest.raises(SimPOError, match=r"3 of 5 rows cannot be read; at most half.*The first is line 2: not valid"):
        list(train_rows(tmp_path / "pairs.jsonl", streaming, "drop"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_cannot_be_used_ends_the_run_where_that_is_asked_for(tmp_path, streaming):
    same = {**ROWS[BAD], "prompt": "Same?", "chosen": "a", "rejected": "a"}
    path = write(tmp_path / "pairs.jsonl", [*ROWS[:BAD], same, *ROWS[BAD:]])
    settings = RowSettings(on_bad_row="error")
    row = r"row \d+" if streaming else "row 49"
    with pytest.raises(SimPOError, match=rf"train: {row} cannot be used: both answers are the same.*begins with 'Same"):
        rows = token_set(train_rows(path, streaming, "error"), "train", toy_tokenizer(), settings).rows
        stream = StreamedPairs(rows, batch_size=60, max_length=2048, on_bad_row="error")
        next(iter(stream))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pairs.jsonl", "gone"),
        ("pairs.jsonl", "shorter"),
        ("pairs.csv", "other rows"),
        pytest.param("pairs.parquet", "gone", marks=pytest.mark.slow),
    ],
)
def test_a_stream_that_changes_is_never_read_to_a_silent_end(tmp_path, name, change):
    path = tmp_path / name
    write(path, ROWS)
    rows = train_rows(path)
    assert len(list(rows)) == 60
    if change == "gone":
        path.unlink()
    else:
        before = path.stat().st_mtime_ns
        write(path, ROWS[:30] if change == "shorter" else ROWS[::-1])
        os.utime(path, ns=(before, before + 1))  # file systems with coarse times
    with pytest.raises(SimPOError, match=rf"{name} (is gone|was changed).*go on from the last checkpoint"):
        list(rows)


def test_fingerprint_of_a_stream_is_that_of_its_files_wherever_they_are(tmp_path):
    def fingerprint(folder, rows=ROWS, **config):
        return rows_fingerprint(train_rows(write(tmp_path / folder / "pairs.jsonl", rows), **config).map(dict))

    own = fingerprint("a")
    assert own == fingerprint("b")
    assert own not in (fingerprint("c", ROWS[::-1]), fingerprint("b", test_split_size=5), None)
    assert rows_fingerprint(datasets.Dataset.from_list(ROWS).to_iterable_dataset()) is None
