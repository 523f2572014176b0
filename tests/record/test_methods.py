"""A method is one row of a table: recipe, run, card and comparison have it from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer.record.methods import METHODS

ROOT = Path(__file__).parents[2]

# The class is any trainer's, here SFT's under another name; the row is all that the package is told.
_TOY = """
import sys
from simpo_trainer.record.methods import METHODS, Method
METHODS["toy"] = Method(
    name="toy", title="Toy", tags=("toy",), training="by a toy", won="", rows="rows",
    trainer="toy_trainer:ToyTrainer", arguments="simpo_trainer.baselines.settings:SFTArguments",
    usual={"learning_rate": 0.25},
)
from simpo_trainer.cli import main
main(sys.argv[1:])
"""
_TRAINER = """
from simpo_trainer.baselines.sft import SFTBaseline
class ToyTrainer(SFTBaseline):
    method = "toy"
"""
_RECIPE = """
method: toy
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
max_steps: 1
logging_steps: 1
use_cpu: true
"""


@pytest.mark.slow
def test_a_method_is_added_by_one_row(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(8)))
    (tmp_path / "toy_trainer.py").write_text(_TRAINER)
    (tmp_path / "r.yaml").write_text(_RECIPE)

    def simpo(*words):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _TOY, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    shown = simpo("recipe", "show", "r.yaml")
    assert "# Toy\n" in shown and "learning_rate: 0.25" in shown
    simpo("train", "r.yaml")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained by a toy." in card and "# Model trained with Toy" in card
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["method"] == "toy"
    assert "toy nll" in simpo("compare", "out")


@pytest.mark.parametrize("name", METHODS)
def test_what_a_row_names_is_there(name):
    method = METHODS[name]
    assert method.name == name and method.is_simpo == (name == "simpo")
    for what in ("trainer", "arguments", "settle"):
        assert callable(method.load(what)) or not getattr(method, what)
