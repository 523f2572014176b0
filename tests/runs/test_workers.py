"""Signals to the whole group of a run that loads its batches in workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer.train.stop import STOP_SIGNALS

ROOT = Path(__file__).parents[2]
RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
learning_rate: 1e-3
logging_steps: 1
max_steps: 100000
save_strategy: "no"
use_cpu: true
dataloader_num_workers: 2
"""


@pytest.fixture
def training(tmp_path):
    """Starts a run, and returns it in the middle of its training with its log."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(4000)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    log = tmp_path / "log"
    started = []

    def start(*options: str, until: str = "step 5/"):
        words = ["train", "recipe.yaml", "--output_dir", "out", *options]
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "simpo_trainer", *words],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                # A test run in the background of a shell ignores them.
                preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in STOP_SIGNALS],
            )
        started.append(process)
        end = time.monotonic() + 200
        while until not in log.read_text() or len(psutil.Process(process.pid).children(recursive=True)) < 2:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return process, log

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "number"),
    [("simpo", signal.SIGTERM), ("simpo", signal.SIGINT), ("dpo", signal.SIGUSR1)],
)
def test_a_signal_to_the_group_stops_the_run_with_a_checkpoint(training, tmp_path, method, number):
    process, log = training("--method", method)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    assert process.wait(timeout=120) == 128 + number, log.read_text()
    assert "Go on with:" in log.read_text()
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").is_file()
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_a_run_that_is_stopped_at_once_leaves_no_worker(training):
    process, log = training()
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGSTOP)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.02)
    assert process.wait(timeout=60) == 130, log.read_text()
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_sigterm_while_several_processes_tokenize_ends_all_of_them(training):
    """They are forked, and so have the handler of the process that forked them."""
    process, log = training("--dataset_num_proc", "2", until="")
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) in (-signal.SIGTERM, 128 + signal.SIGTERM), log.read_text()
    assert not psutil.wait_procs(started, timeout=10)[1]


SHIELDED = """
import os, signal
from torch.utils.data import DataLoader
from simpo_trainer.batches.workers import shield_workers
from simpo_trainer.train.stop import STOP_SIGNALS, StopRequest

class Signalled:
    def __len__(self):
        return len(STOP_SIGNALS)

    def __getitem__(self, index):
        os.kill(os.getpid(), STOP_SIGNALS[index])
        return index

with StopRequest() as request, request.deferred():
    print([int(row) for row in shield_workers(DataLoader(Signalled(), num_workers=1, batch_size=None))])
"""


@pytest.mark.slow
def test_a_worker_leaves_every_signal_to_the_process_that_trains():
    command = [sys.executable, "-c", SHIELDED]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 1, 2, 3, 4]\n", done.stderr


STUCK = """
import sys, time
from torch.utils.data import DataLoader, Dataset
from simpo_trainer.batches.workers import shield_workers

class Stuck(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        print("loading", flush=True)
        time.sleep(1000)

batches = iter(shield_workers(DataLoader(Stuck(), num_workers=1)))
time.sleep(1)
print("ending", flush=True)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_its_process_from_ending():
    """Python ends the workers that are left by SIGTERM, and waits for them."""
    command = [sys.executable, "-c", STUCK]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.split() == ["loading", "ending"]
