"""The installed package: a wheel holds every module, and the recipes that are found by name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("simpo_trainer", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "out", "."]
    subprocess.run(command, cwd=folder, check=True)
    [wheel] = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def files(folder, pattern):
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


@pytest.mark.slow
def test_every_module_recipe_and_data_file_is_installed(installed):
    package = installed / "simpo_trainer"
    assert files(package, "*.py") == files(ROOT / "simpo_trainer", "*.py")
    data = files(ROOT / "simpo_trainer", "*.json")
    assert "cli/keys_help.json" in data and (package / "report" / "page.css").is_file()
    assert files(package, "*.json") == data
    recipes = files(ROOT / "recipes", "*.*")
    assert {"paper/llama3-8b-base.yaml", "launch/slurm.sh"} <= recipes
    assert files(package / "_recipes", "*.*") == recipes


@pytest.mark.slow
def test_recipes_are_found_by_name(installed, tmp_path):
    script = (
        "import simpo_trainer; from simpo_trainer.cli import main; print(simpo_trainer.__file__, flush=True);"
        "main(['recipe', 'show', 'paper/gemma2-9b-it', '--origins'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    assert first.startswith(str(installed))
    assert any(line.startswith("learning_rate: 8.0e-07  # paper/gemma2-9b-it.yaml:") for line in lines)
