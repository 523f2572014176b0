"""Two runs at once in one output folder: the second is refused; a run that is asked to end gives way to the next."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run
from simpo_trainer.train.lock import LOCK, FolderLock

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
TRAIN = (sys.executable, "-m", "simpo_trainer", "train")
IMPATIENT = "from simpo_trainer.train import lock; from simpo_trainer.cli import main; lock.WAIT = 0.5; main()"
RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
learning_rate: 1e-3
logging_steps: 1
save_strategy: steps
save_steps: 20
use_cpu: true
"""


@pytest.fixture
def start(tmp_path):
    """Starts a command in a folder with a recipe, its output going into a file; it ends with the test at the latest."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(14)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    started = []

    def start(log: Path, *words: str) -> subprocess.Popen:
        with log.open("w") as stream:
            process = subprocess.Popen(
                words,
                cwd=tmp_path,
                env=inherited | {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": ""},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_one_run_at_a_time(tmp_path, start, monkeypatch):
    first_log, second_log = tmp_path / "first.txt", tmp_path / "second.txt"
    out = tmp_path / "out"
    first = start(first_log, *TRAIN, "recipe.yaml", "--max_steps", "100000")
    wait_for((out / "checkpoint-20" / "trainer_state.json").is_file, first, first_log)
    holder = json.loads((out / LOCK).read_text())

    second = start(second_log, sys.executable, "-c", IMPATIENT, "train", "recipe.yaml", "--max_steps", "1")
    assert second.wait(60) == 1
    refusal = second_log.read_text().splitlines()[-1]
    assert refusal.startswith("error: output_dir out is in use by another run")
    assert f"host {holder['host']}, pid {first.pid}, since {holder['started']} UTC" in refusal
    left = {file.name for file in out.iterdir()}
    assert "checkpoint-20" in left and not any(name.startswith("_earlier") for name in left)

    # The next one begins while the first is ending, as when a scheduler puts a job back into its queue.
    monkeypatch.chdir(tmp_path)
    threading.Timer(0.5, first.send_signal, [signal.SIGTERM]).start()
    assert run(load_recipe("recipe.yaml", {"max_steps": "2"}))["train_loss"] > 0
    assert first.wait(60) == 128 + signal.SIGTERM, first_log.read_text()
    assert (out / "_earlier-checkpoint-20").is_dir() and not (out / LOCK).exists()
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2


def test_a_run_that_waits_can_be_stopped(tmp_path, start):
    log, held = tmp_path / "log.txt", FolderLock(tmp_path / "out")
    held.acquire()
    try:
        waiting = start(log, *TRAIN, "recipe.yaml")
        wait_for(lambda: "Waiting for its end" in log.read_text(), waiting, log)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(10) == 130
    finally:
        held.release()
    assert "Stopped before the first step: nothing was trained or saved since the start." in log.read_text()
    assert os.listdir(tmp_path / "out") == []
