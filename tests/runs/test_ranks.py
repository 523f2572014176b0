"""Two real processes of which one hangs or fails: it is named, and the other does not hide it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer.run.orphans import LAUNCHER_OPTIONS

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
LIMIT = 2


def surroundings() -> dict[str, str]:
    """The environment of a command that no launcher has started."""
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", LAUNCHER_OPTIONS)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])
    inherited = {key: value for key, value in os.environ.items() if key not in launched}
    return inherited | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def two_ranks(log: Path, *words: str):
    """Two processes that no launcher started, of which the first holds the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    try:
        for rank in ("0", "1"):
            environment = surroundings() | shared | {"RANK": rank, "LOCAL_RANK": rank}
            with log.open("a") as stream:
                command = [sys.executable, *words]
                ranks.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def wait_for(log: Path, words: str, ranks: list[subprocess.Popen], start: int = 0) -> None:
    """Wait until the words stand in the log behind some place; the ranks must not end meanwhile."""
    end = time.monotonic() + 60
    while words not in log.read_text()[start:]:
        assert all(rank.poll() is None for rank in ranks), log.read_text()
        assert time.monotonic() < end, f"no {words!r} in\n{log.read_text()}"
        time.sleep(0.05)


def test_a_rank_that_hangs_is_named_whichever_it_is(tmp_path):
    """The second waits for its data; then the first is stopped, which holds the store; then the second is."""
    log = tmp_path / "log"
    worker = [str(TESTS / "support" / "hanging_worker.py"), str(tmp_path / "run"), str(LIMIT), str(LIMIT + 1)]
    with two_ranks(log, *worker) as ranks:
        wait_for(log, "warning: Rank 1 has not reported for 2 s (the others wait for it at step ", ranks)
        wait_for(log, "\nRank 1 reports again.", ranks)
        for stopped, process in enumerate(ranks):
            before = len(log.read_text())
            process.send_signal(signal.SIGSTOP)
            wait_for(log, f"warning: Rank {stopped} has not reported for 2 s", [], before)
            process.send_signal(signal.SIGCONT)
            wait_for(log, f"\nRank {stopped} reports again.", ranks, before)
        for process in ranks:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=30) for process in ranks] == [0, 0], log.read_text()
    text = log.read_text()
    assert text.count("ended well") == 2
    assert text.count("has not reported") == 3 and text.count("reports again") == 3, text


RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
max_steps: 10
save_strategy: "no"
use_cpu: true
"""
WORKER = str(TESTS / "support" / "failing_worker.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER]
LAUNCHER = ["--launcher", "ddp", "--num-processes", "2", "--main-process-port", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("failing")
    tiny_model().save_pretrained(path / "model")
    word_tokenizer().save_pretrained(path / "model")
    (path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(14)))
    (path / "recipe.yaml").write_text(RECIPE)
    return path


def fail(folder: Path, name: str, *command: str) -> list[str]:
    """The lines of a run whose rank fails as the worker knows it by name; the status is that of an error."""
    done = subprocess.run(
        [sys.executable, *command, "--output_dir", f"out-{name}"],
        cwd=folder,
        env=surroundings() | {"FAILS": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    assert "closed by peer" not in done.stdout.lower() and "reset by peer" not in done.stdout.lower()
    return done.stdout.splitlines()


@pytest.mark.parametrize(("name", "rank"), [("bug", 0), ("mistake", 1)])
def test_the_first_cause_is_the_last_line(folder, name, rank):
    """Whichever rank had it, in one line, and the other one does not show that it lost the first."""
    lines = fail(folder, f"{name}-{rank}", WORKER, "train", "recipe.yaml", *LAUNCHER)
    cause = {"bug": "KeyError: 'no such thing'", "mistake": "row 3 is bad. Change it."}[name]
    assert lines[-1] == f"error: Rank {rank} failed first: {cause}"
    trace = "Traceback (most recent call last)"
    assert [line for line in lines if trace in line] == ([f"[rank{rank}]: {trace}:"] if name == "bug" else [])


def test_under_torchrun_the_other_rank_names_the_first(folder):
    lines = fail(folder, "mistake-1", *TORCHRUN, "train", "recipe.yaml")
    said = [line for line in lines if line.startswith("error: ")]
    assert said == ["error: row 3 is bad. Change it.", "error: Rank 1 failed first: row 3 is bad. Change it."]
