"""A seal says whether a checkpoint is whole: any file that is missing, cut, emptied or changed breaks it."""

import json
import os

import pytest

from simpo_trainer.record.folders import checkpoints, is_checkpoint, torn_checkpoints
from simpo_trainer.record.seal import (
    SEAL,
    begin_checkpoint,
    broken_files,
    is_open,
    read_seal,
    remove_checkpoint,
    seal_checkpoint,
)

FILES = {"model.safetensors": b"weights" * 100, "optimizer.pt": b"state", "part/rank_1.bin": b"1", "empty.json": b""}


def written(folder, files=FILES):
    """A checkpoint that is written, and not sealed yet."""
    begin_checkpoint(folder)
    for name, content in {**files, "trainer_state.json": b"{}"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def sealed(tmp_path):
    folder = written(tmp_path / "checkpoint-10")
    seal_checkpoint(folder, {"step": 10})
    return folder


def test_a_sealed_checkpoint_is_whole_and_counts(sealed):
    assert broken_files(sealed) == [] and is_checkpoint(sealed) and not is_open(sealed)
    seal = read_seal(sealed)
    assert seal["step"] == 10 and seal["sealed"].endswith("+00:00")
    assert seal["files"].keys() == FILES.keys() | {"trainer_state.json"}


def test_one_that_is_being_written_does_not_count(tmp_path):
    folder = written(tmp_path / "checkpoint-10")
    assert is_open(folder) and not is_checkpoint(folder)
    assert broken_files(folder) == ["seal.json is open: it was not written to the end"]
    assert checkpoints(tmp_path) == [] and torn_checkpoints(tmp_path) == [folder]


def test_what_a_killed_run_left_is_not_in_the_next_one(tmp_path):
    folder = written(tmp_path / "checkpoint-10", {"stale.bin": b"1"})
    begin_checkpoint(folder)
    assert [path.name for path in folder.iterdir()] == [SEAL]


@pytest.mark.parametrize("name", [*FILES, "trainer_state.json"])
@pytest.mark.parametrize("harm", ["removed", "emptied", "cut", "grown", "one byte"])
def test_every_harm_to_every_file_is_named(sealed, name, harm):
    path = sealed / name
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    elif harm == "grown":
        path.write_bytes(content + b"x")
    elif not content:
        pytest.skip("the file is empty")
    elif harm == "emptied":
        path.write_bytes(b"")
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [problem] = broken_files(sealed)
    assert problem.startswith(f"{name} ")
    assert {"removed": "is missing", "one byte": "was changed"}.get(harm, "bytes, not") in problem


@pytest.mark.parametrize("content", ["", "{", "[]", '{"open": false, "files": 3}'])
def test_a_seal_that_cannot_be_read_is_open(sealed, content):
    (sealed / SEAL).write_text(content)
    assert is_open(sealed) and not is_checkpoint(sealed)


def test_a_seal_that_was_changed_is_open(sealed):
    """A number in it would make another run of it."""
    text = (sealed / SEAL).read_text()
    assert read_seal(sealed)["step"] == 10
    (sealed / SEAL).write_text(text.replace('"step": 10', '"step": 11'))
    assert is_open(sealed)


def test_a_seal_of_an_earlier_version_has_no_hash_of_itself(sealed):
    seal = json.loads((sealed / SEAL).read_text())
    del seal["hash_of_this_seal"]
    (sealed / SEAL).write_text(json.dumps(seal))
    assert not is_open(sealed) and broken_files(sealed) == []


def test_a_file_beside_those_of_the_seal_is_no_harm(sealed):
    (sealed / "notes.txt").write_text("mine")
    assert broken_files(sealed) == []


def test_a_checkpoint_of_an_earlier_version_has_none(tmp_path):
    folder = written(tmp_path / "checkpoint-10")
    (folder / SEAL).unlink()
    assert read_seal(folder) is None and broken_files(folder) == [] and checkpoints(tmp_path) == [folder]


def test_a_removal_that_is_killed_leaves_nothing_that_counts(sealed, monkeypatch):
    """Killed before each file in turn: whatever is left, the seal is open."""

    class Killed(Exception):
        pass

    done: list = []
    survived: list = []

    def dies(real):
        def call(path, *args, **kwargs):
            done.append(path)
            if len(done) > len(survived):
                raise Killed
            return real(path, *args, **kwargs)

        return call

    files = {path.name: path.read_bytes() for path in sealed.iterdir() if path.is_file()}
    for count in range(len(files)):
        survived[:] = list(files)[:count]
        for name, content in files.items():
            (sealed / name).write_bytes(content)
        done.clear()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(type(sealed), "unlink", dies(type(sealed).unlink))
            remove_checkpoint(sealed)
        assert not is_checkpoint(sealed) and (is_open(sealed) or not (sealed / "trainer_state.json").exists())
    remove_checkpoint(sealed)
    assert not sealed.exists()


def test_the_seal_is_the_old_or_the_new_one_at_any_time(sealed, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    before = read_seal(sealed)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        seal_checkpoint(sealed, {"step": 11})
    assert read_seal(sealed) == before and json.loads((sealed / SEAL).read_text())["step"] == 10
    monkeypatch.undo()
    assert broken_files(sealed) == []
