"""The folder of the real model appears whole or not at all, and is made once. What is in it: tests/runs."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import real_model as script  # noqa: E402


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The folders that a conversion was asked for; it writes a configuration alone."""
    folders = []

    def convert(file, folder):
        folders.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(script, "gguf_file", lambda: tmp_path / script.NAME)
    monkeypatch.setattr(script, "_convert", convert)
    return folders


def test_it_is_made_once(made, tmp_path):
    folder = tmp_path / "runs" / "model"
    assert script.prepare(folder) == script.prepare(folder) == folder
    assert len(made) == 1 and made[0] != folder
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_conversion_that_fails_leaves_nothing(made, tmp_path, monkeypatch):
    def fails(file, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("no space")

    monkeypatch.setattr(script, "_convert", fails)
    with pytest.raises(OSError, match="no space"):
        script.prepare(tmp_path / "runs" / "model")
    assert not list((tmp_path / "runs").iterdir())


def test_two_that_make_it_at_once_have_one_folder(made, tmp_path, monkeypatch):
    folder, convert = tmp_path / "model", script._convert

    def slower(file, unfinished):
        folder.mkdir()
        (folder / "config.json").write_text("of the other")
        convert(file, unfinished)

    monkeypatch.setattr(script, "_convert", slower)
    assert script.prepare(folder) == folder
    assert (folder / "config.json").read_text() == "of the other"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_the_packages_it_is_said_how_to_install_them(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.gguf_file() is None
    with pytest.raises(SystemExit, match="Run `make install-real`"):
        script.prepare(tmp_path / "model")
