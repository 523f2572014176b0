"""What `simpo train ... > log 2>&1` leaves in the log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
dataset_train_split: train[:16]
dataset_test_split: train[16:]
output_dir: out
logging_steps: 1
max_steps: 2
eval_strategy: steps
eval_steps: 1
save_strategy: steps
save_steps: 1
load_best_model_at_end: true
per_device_train_batch_size: 4
use_cpu: true
"""
PACE = r"  (pairs|rows)/s \S+  tokens/s \d+  memory \d+\.\d\dGB  time 0:\d\d:\d\d  left 0:\d\d:\d\d$"


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--use_peft", "true"), ("--method", "dpo")])
def test_lines_with_their_pace_and_no_bar_nor_warning(tmp_path, options):
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(24)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    # As in a shell of a user: without the switches of this test suite. The cache is the run's own, because sets
    # that are in it already are loaded without a bar.
    plain = {
        name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name and name != "TQDM_DISABLE"
    }
    done = subprocess.run(
        [sys.executable, "-m", "simpo_trainer", "train", "recipe.yaml", *options],
        cwd=tmp_path,
        env=plain | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(tmp_path / "hf")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    log = done.stdout.decode()
    assert done.returncode == 0, log
    assert "\r" not in log
    assert "it/s" not in log
    assert "FutureWarning" not in log
    assert "missing keys" not in log
    lines = [line for line in log.splitlines() if re.match(r"step \d/2  train", line)]
    assert len(lines) == 2
    assert all(re.search(PACE, line) for line in lines), lines
