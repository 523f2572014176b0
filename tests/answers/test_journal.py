"""The journal of finished rows: torn lines, other settings, a full disk, two writers."""

import errno
import multiprocessing
import os

import pytest

from simpo_trainer import SimPOError
from simpo_trainer.answers.journal import Journal, identity_differences, only_writer

IDENTITY = {"model": "a", "seeds": (1, 2)}
GROUPS = [[{"key": "1", "text": "one\n"}, {"key": "2", "text": "två"}], [{"key": "3", "text": "\ud800"}]]


def begun(folder, groups=GROUPS):
    journal = Journal(folder / "rows.jsonl", IDENTITY)
    journal.open()
    for group in groups:
        journal.add(group)
    return journal


def again(folder, identity=None):
    journal = Journal(folder / "rows.jsonl", identity or IDENTITY)
    journal.open()
    return journal


def test_rows_are_there_again(tmp_path):
    rows = begun(tmp_path).rows
    assert list(rows) == ["1", "2", "3"]
    assert again(tmp_path).rows == rows


def test_a_kill_at_any_byte_leaves_whole_groups(tmp_path):
    whole = begun(tmp_path).path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        (tmp_path / "rows.jsonl.partial").write_bytes(whole[:size])
        journal = again(tmp_path)
        groups = max(0, sum(end <= size for end in ends) - 1)
        assert list(journal.rows) == [row["key"] for group in GROUPS[:groups] for row in group]
        for group in GROUPS[groups:]:
            journal.add(group)
        assert journal.path.read_bytes() == whole


def test_other_settings_are_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(SimPOError, match=r'begun with other settings: model "a" there, "b" here'):
        again(tmp_path, {"model": "b", "seeds": [1, 2]})
    assert identity_differences({"a": 1}, {"a": 1, "b": 2}) == ["b null there, 2 here"]


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    journal = begun(tmp_path, GROUPS[:1])
    before = journal.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(SimPOError, match="the disk is full. What was finished before is kept: free room"):
            journal.add(GROUPS[1])
    assert journal.path.read_bytes() == before
    assert list(journal.rows) == ["1", "2"]
    journal.add(GROUPS[1])
    assert list(again(tmp_path).rows) == ["1", "2", "3"]


def _hold(target, held, ended):
    with only_writer(target):
        held.set()
        ended.wait(20)


def test_one_process_writes_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    held, ended = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "rows.jsonl", held, ended))
    process.start()
    assert held.wait(20)
    with pytest.raises(SimPOError, match="Another process is writing"), only_writer(tmp_path / "rows.jsonl"):
        pass
    process.kill()
    process.join(20)
    with only_writer(tmp_path / "rows.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SimPOError, match="cannot be written"), only_writer(tmp_path / "file" / "rows.jsonl"):
        pass
