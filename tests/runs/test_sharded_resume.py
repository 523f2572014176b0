"""Sharded checkpoints under FSDP2: another number of processes, and other settings, go on from them."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engines import command, environment
from models import random_pairs
from runs import write_run
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run

pytestmark = pytest.mark.slow
_RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
max_steps: 4
global_batch_size: 4
per_device_train_batch_size: 2
learning_rate: 1e-3
lr_scheduler_type: constant
warmup_steps: 0
adam_epsilon: 1e-4
save_strategy: steps
save_steps: 2
logging_steps: 1
use_cpu: true
report_to: none
"""


def train(folder: Path, processes: int, *overrides: str) -> str:
    words = command("FSDP2, parts", ["recipe.yaml", *overrides], processes)
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def from_its_middle(whole: Path, folder: Path) -> Path:
    """A copy of the run as it was when it was killed behind its first checkpoint."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("out"))
    shutil.copytree(whole / "out" / "checkpoint-2", folder / "out" / "checkpoint-2")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    write_run(folder, _RECIPE, random_pairs(16))
    train(folder, 2)
    return folder


def weights(folder: Path):
    return load_file(folder / "out" / "model.safetensors")


def test_another_number_of_processes_goes_on_to_the_same_end(whole, tmp_path):
    folder = from_its_middle(whole, tmp_path / "run")
    said = train(folder, 4, "--per_device_train_batch_size", "1")
    assert "Going on from out/checkpoint-2." in said and "processes was 2 and is 4" in said
    torch.testing.assert_close(weights(folder), weights(whole), rtol=0, atol=1e-6)


def test_a_new_learning_rate_counts_for_the_parts_too(whole, tmp_path, monkeypatch):
    """With a rate of 0 the weights stay those of the checkpoint, which one process alone would have too."""
    folder = from_its_middle(whole, tmp_path / "run")
    assert "learning_rate was 0.001 and is 0" in train(folder, 2, "--learning_rate", "0", "--allow_changes")
    monkeypatch.chdir(folder)
    run(load_recipe("recipe.yaml", {"output_dir": "half/out", "max_steps": 2, "per_device_train_batch_size": 4}))
    torch.testing.assert_close(weights(folder), weights(folder / "half"), rtol=0, atol=1e-6)
