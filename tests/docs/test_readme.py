"""What the README shows must be true: its example runs, its recipe parses, its files and metrics exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from layers import LAYERS
from models import random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer.answers import generation
from simpo_trainer.cli import app as cli
from simpo_trainer.cli import train
from simpo_trainer.recipe import check_recipe, load_recipe
from simpo_trainer.results import command
from simpo_trainer.rounds import iteration
from simpo_trainer.run.launcher import launcher_files
from simpo_trainer.scores import annotation

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAIRS = random_pairs(8)


def _blocks(language: str, page: str = README) -> list[str]:
    fences = re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)
    return [text for name, text in fences if name == language]


def test_the_loss_example_is_short_and_trains_its_loss(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    example = next(block for block in _blocks("python") if "def pair_loss" in block)
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    names: dict = {"pairs": Dataset.from_list(PAIRS)}
    exec(example, names)
    trainer = names["trainer"]
    logps = trainer.predict(Dataset.from_list(PAIRS)).predictions
    simpo = np.logaddexp(0, -2.0 * (logps[:, 0] - logps[:, 1] - 0.5))
    floor = np.maximum(-2.0 - logps[:, 0], 0)
    assert floor.max() > 0
    expected = (simpo + floor).mean()
    trainer.train()
    # One step of all eight pairs, so what it logs is the loss of the weights as they were.
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_recipe_and_rows(tmp_path):
    (tmp_path / "my_run.yaml").write_text(_blocks("yaml")[0])
    recipe = load_recipe(tmp_path / "my_run.yaml")
    assert recipe.training.gamma_beta_ratio == 0.5
    used = recipe.training.settled()
    assert used.per_device_train_batch_size * used.gradient_accumulation_steps == used.global_batch_size == 128
    for row in _blocks("json")[0].splitlines():
        (tmp_path / "pairs.jsonl").write_text(row + "\n")
        pairs = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train")
        assert pairs.column_names == ["prompt", "chosen", "rejected"]


def test_the_commands_are_understood(tmp_path, monkeypatch):
    """Recipes that exist, overrides that are keys, launchers that there are: each command up to the work itself."""
    (tmp_path / "my_run.yaml").write_text(_blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    seen, compared, answers = [], [], []
    monkeypatch.setattr(train, "_train", lambda recipe, overrides: seen.append(check_recipe(recipe, overrides)))
    monkeypatch.setattr(train, "_launch", lambda words, launcher, given: seen.append(_launched(words, launcher)) or 0)
    monkeypatch.setattr(command, "compare", lambda folders, output, console: compared.append(folders))
    monkeypatch.setattr(generation, "generate", lambda recipe, settings: answers.append(settings.output))
    monkeypatch.setattr(annotation, "annotate", lambda file, settings: answers.append(settings.score))
    monkeypatch.setattr(iteration, "iterate", lambda recipe, settings, launching: answers.append(settings.rounds))
    lines = [line for block in _blocks("bash") for line in block.splitlines() if line.startswith("simpo ")]
    for line in lines:
        with pytest.raises(SystemExit) as exit:
            cli.main(shlex.split(line, comments=True)[1:])
        assert exit.value.code == 0, line
    trained = [line for line in lines if line.startswith("simpo train") and "--help" not in line]
    assert answers == ["answers.jsonl", "rules.py:score", 3]
    assert len(seen) == len(trained) == 7 and compared == [[Path("runs/mine"), Path("runs/dpo")]]


def _launched(words, launcher):
    assert launcher in launcher_files()
    return check_recipe(words[0], words[1:])


def _tree(page):
    tree = next(block for block in _blocks("", page) if "simpo_trainer/" in block).partition("\nrecipes/")[0]
    return re.findall(r"^  ([a-z]+)/ (.*?)(?=^  \S|\Z)", tree, re.MULTILINE | re.DOTALL)


def test_it_is_short_and_its_tree_lists_every_folder():
    assert len(README.splitlines()) <= 250
    package = ROOT / "simpo_trainer"
    assert [name for name, _ in _tree(README)] == [layer for layer in LAYERS if (package / layer).is_dir()]


def test_the_tree_lists_every_file_under_its_folder():
    entries = _tree(CONTRIBUTING)
    package = ROOT / "simpo_trainer"
    assert [name for name, _ in entries] == [layer for layer in LAYERS if (package / layer).is_dir()]
    for name, text in entries:
        there = {path.name for path in (package / name).glob("*.py")} - {"__init__.py"}
        if name != "quickstart":
            assert there == set(re.findall(r"[a-z_]+\.py", text)) - {"run_simpo.py"}, name
    assert {path.name for path in package.glob("[a-z]*.py")} == {
        *("environment.py", "knobs.py", "value_types.py", "errors.py", "log.py", "lazy.py")
    }


def test_documents_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/data.md" in links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).is_file(), link
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in links, page.name


def test_metrics_in_the_table_are_logged(tmp_path):
    trainer = make_trainer(tmp_path, PAIRS, max_steps=1, eval_dataset=Dataset.from_list(PAIRS))
    trainer.train()
    logged = set(trainer.state.log_history[0]) | set(trainer.evaluate())
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page[page.index("| metric | meaning |") :].split("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`([a-z_/]+)`", line.split("|")[1])}
    assert len(named) > 15
    assert named <= logged


def test_make_targets_exist():
    targets = set(re.findall(r"make ([a-z-]+)", "\n".join(_blocks("bash")) + README)) - {"are"}
    assert {"quickstart", "test"} <= targets
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
