"""Recipes by path and by name."""

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe import paths as recipe_paths
from simpo_trainer.recipe.paths import find_recipe, recipe_files, recipes_folder


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("")
    assert find_recipe("quickstart").resolve() == tmp_path / "quickstart"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("recipes/quickstart.yaml", "quickstart.yaml"),
        ("paper/llama3-8b-instruct", "paper/llama3-8b-instruct.yaml"),
        ("llama3-8b-instruct", "paper/llama3-8b-instruct.yaml"),
        ("llama3-8b-instruct-v0.2", "paper/llama3-8b-instruct-v0.2.yaml"),
        ("recipes/sizes/70b.yaml", "sizes/70b.yaml"),
    ],
)
def test_recipes_by_name(tmp_path, monkeypatch, name, file):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == recipes_folder() / file


def test_neither_launchers_nor_shared_parts_are_recipes():
    names = recipe_files()
    assert "quickstart" in names
    assert not [name for name in names if name.startswith(("accelerate", "launch", "_"))]


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(SimPOError, match=r"not found. Did you mean quickstart\?"):
        find_recipe("quikstart")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(SimPOError, match=r"mien.yaml not found. Did you mean .*/mine.yaml\?"):
        find_recipe(tmp_path / "mien.yaml")
    with pytest.raises(SimPOError, match="not found. Check the path; `simpo recipe list` shows"):
        find_recipe("xyzzy")


def test_a_name_that_several_have(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").write_text("")
    monkeypatch.setattr(recipe_paths, "recipes_folder", lambda: tmp_path)
    with pytest.raises(SimPOError, match="recipe same is ambiguous: one/same or two/same. Write one of these"):
        find_recipe("same")
    assert find_recipe("two/same") == tmp_path / "two" / "same.yaml"


def test_a_folder_does_not_hide_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "mine").mkdir()
    assert find_recipe("quickstart") == recipes_folder() / "quickstart.yaml"
    with pytest.raises(SimPOError, match="recipe mine is a folder. Name one YAML file"):
        find_recipe("mine")
