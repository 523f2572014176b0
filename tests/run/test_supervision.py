"""`simpo train --launcher`: real processes that train, fail, are interrupted or killed, and what is seen of it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from models import as_text, random_pairs, tiny_model, word_tokenizer
from processes import still_running
from simpo_trainer import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run, supervision
from simpo_trainer.run.first_cause import Failure
from simpo_trainer.run.supervision import _status, supervise
from simpo_trainer.train.stop import NOTHING_YET, STOP_SIGNALS

ROOT = Path(__file__).parents[2]
RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
learning_rate: 1e-3
logging_steps: 1
save_strategy: "no"
use_cpu: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe, a tiny model and pairs."""
    path = tmp_path_factory.mktemp("launched")
    tiny_model().save_pretrained(path / "model")
    word_tokenizer().save_pretrained(path / "model")
    (path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(14)))
    (path / "recipe.yaml").write_text(RECIPE)
    return path


SIMPO = ["-m", "simpo_trainer", "train", "recipe.yaml"]
TORCHRUN = [
    *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    *(str(ROOT / "scripts" / "run_simpo.py"), "recipe.yaml"),
]


def start(folder: Path, log: Path, *words: str, command: Sequence[str] = SIMPO) -> subprocess.Popen:
    """A command as a terminal starts it: leading a process group of its own."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, *command, *words],
            cwd=folder,
            env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )


def _heed_signals() -> None:
    # A test run in the background of a shell ignores them, and what it starts would inherit that.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def finish(process: subprocess.Popen, log: Path) -> tuple[int, str]:
    try:
        return process.wait(timeout=400), log.read_text()
    finally:
        process.kill()


@contextmanager
def in_training(folder: Path, log: Path, launcher: str, count: int, *overrides: str):
    """A run in the middle of its training: the launching process, and those that it started."""
    # From the start, also where another test has left a checkpoint.
    words = ["--max_steps", "100000", "--output_dir", log.stem, "--resume_from_checkpoint=false", *overrides]
    if launcher == "torchrun":
        process = start(folder, log, *words, command=TORCHRUN)
    else:
        process = start(folder, log, "--launcher", launcher, "--num-processes", str(count), *words)
    started = []
    try:
        end = time.monotonic() + 400
        while "step 10/" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        started = psutil.Process(process.pid).children()
        assert len(started) == count
        yield process, started
        assert not still_running(started, 0)
    finally:
        for one in [process, *started]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.slow
def test_launched_processes_train_as_one(folder, tmp_path, monkeypatch):
    """This process and two launched ones, with the same global batch of 4 pairs: same losses, same weights."""
    monkeypatch.chdir(folder)
    run(load_recipe("recipe.yaml", {"output_dir": "one", "per_device_train_batch_size": 4}))
    log = tmp_path / "log"
    options = ["--launcher", "ddp", "--num-processes", "2", "--output_dir", "two", "--per_device_train_batch_size", "2"]
    status, text = finish(start(folder, log, *options), log)
    assert status == 0, text
    assert "x 2 processes" in text
    assert "/accelerate/ddp.yaml --num_processes 2 --module simpo_trainer train recipe.yaml" in text
    losses, found_losses = (
        [entry["loss"] for entry in json.loads((folder / name / "trainer_state.json").read_text())["log_history"][:3]]
        for name in ("one", "two")
    )
    assert found_losses == pytest.approx(losses, rel=2e-4)
    weights, found_weights = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(found_weights, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_error_in_the_processes_is_shown_once(folder, tmp_path):
    log = tmp_path / "log"
    words = ["--launcher", "ddp", "--num-processes", "2", "--dataset_name", "nowhere.jsonl"]
    status, text = finish(start(folder, log, *words), log)
    assert status == 1
    lines = text.splitlines()
    assert lines[0].startswith("Launching: ")
    assert lines[1].startswith("error: nowhere.jsonl")
    assert len(lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "count", "number", "send"),
    [
        ("ddp", 2, signal.SIGINT, os.killpg),
        ("ddp", 2, signal.SIGUSR1, os.killpg),
        ("ddp", 2, signal.SIGHUP, os.kill),
        ("single", 1, signal.SIGUSR2, os.kill),
    ],
)
def test_a_signal_ends_the_processes_with_one_checkpoint(folder, tmp_path, launcher, count, number, send):
    """The terminal and some schedulers signal a whole group, others the launcher alone."""
    log = tmp_path / launcher
    with in_training(folder, log, launcher, count) as (process, _):
        send(process.pid, number)
        status, text = finish(process, log)
    assert status == 128 + number, text
    assert f"/accelerate/{launcher}.yaml --num_processes {count} --module simpo_trainer train recipe.yaml" in text
    assert f"--launcher {launcher}" in text.partition("Go on with:\n  simpo train recipe.yaml ")[2]
    assert "Traceback" not in text
    [checkpoint] = (folder / log.stem).glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").is_file()


@pytest.mark.slow
def test_a_killed_process_is_named(folder, tmp_path):
    log = tmp_path / "killed"
    with in_training(folder, log, "ddp", 2) as (process, started):
        started[1].kill()
        status, text = finish(process, log)
    assert status == 1
    assert text.splitlines()[-1].startswith("error: Process 1 was ended by SIGKILL. The usual reason is")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "torchrun"])
def test_a_launcher_that_is_killed_leaves_no_process(folder, tmp_path, launcher):
    """They would write beside the job that is started again."""
    workers = ["--dataloader_num_workers=1", "--dataloader_persistent_workers"]
    log = tmp_path / f"killed-{launcher}"
    with in_training(folder, log, launcher, 2, *workers) as (process, started):
        everything = psutil.Process(process.pid).children(recursive=True)
        assert len(everything) == 4
        process.kill()
        assert not still_running(everything, 5)
    assert not list((folder / log.stem).glob("checkpoint-*"))


def waiting(number: int):
    """In place of `accelerate launch`: one process, which the signal ends."""
    code = f"import os, signal, time; os.kill(os.getppid(), {number:d}); time.sleep(60)"
    # As the process would be, once its libraries are loaded: ended by the signal itself.
    subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=_heed_signals, timeout=60)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_passed_on(monkeypatch, number):
    monkeypatch.setattr(supervision, "launch_command", lambda args: waiting(number))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert supervise(["--num_processes", "1", "script.py"], "--launcher single") == 128 + number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_there_are_processes_is_answered(monkeypatch, number, caplog):
    monkeypatch.setattr(supervision, "launch_command", lambda args: os.kill(os.getpid(), number))
    monkeypatch.setattr(psutil, "Process", lambda: Childless)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for seconds, said in ((0.0, [NOTHING_YET]), (9.0, [])):  # in the second case, processes have been there
        caplog.clear()
        monkeypatch.setattr(os, "times", lambda used=seconds: SimpleNamespace(children_user=used))
        with pytest.raises(SystemExit) as caught, caplog.at_level(logging.INFO, "simpo_trainer"):
            supervise(["--num_processes", "1", "script.py"], "--launcher single")
        assert caught.value.code == 128 + number
        assert caplog.messages == said


class Childless:
    """A process that has started none."""

    @staticmethod
    def children():
        return []


def test_a_signal_that_is_ignored_is_not_passed_on(monkeypatch):
    """As SIGHUP is under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(supervision, "launch_command", lambda args: os.kill(os.getpid(), signal.SIGHUP))
        monkeypatch.setattr(os, "environ", dict(os.environ))
        assert supervise(["--num_processes", "1", "script.py"], "--launcher single") == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def failure(rank: int, code: int, *, at: int = 100, message: str | None = None) -> ProcessFailure:
    ended = ProcessFailure(rank, 1000 + rank, code, "no-such-file")
    ended.timestamp = at
    if message:
        ended.message = {"message": message}
    return ended


def test_the_failure_that_came_first_counts():
    """Whatever the order in which torch lists them."""
    ended, lost_connection = failure(0, -signal.SIGTERM), failure(1, 1)
    killed, abandoned = failure(2, -signal.SIGKILL), failure(3, -signal.SIGKILL, at=130)
    told = failure(4, 1, message=f"RuntimeError: {Failure(4, 'pairs: 3 rows', True, False, 100.5).as_text()}")
    assert _status([ended, lost_connection]) == 1
    assert _status([ended, abandoned, failure(0, 130)]) == 130
    assert _status([ended]) == 128 + signal.SIGTERM
    with pytest.raises(SimPOError, match="Process 2 was ended by SIGKILL"):
        _status([lost_connection, ended, abandoned, killed])
    assert _status([lost_connection, abandoned]) == 1
    with pytest.raises(SimPOError, match="^Rank 4 failed first: pairs: 3 rows$"):
        _status([lost_connection, killed, told])
    with pytest.raises(SimPOError, match=r"Process 0 was ended by SIGSEGV\.$"):
        _status([failure(0, -signal.SIGSEGV)])
