"""Two real processes of which one hangs or fails: it is named, and the other does not hide it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from simpo_trainer.run.orphans import LAUNCHER_OPTIONS

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
LIMIT = 2


@contextmanager
def two_ranks(log: Path, *words: str):
    """Two processes that no launcher started, of which the first holds the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": paths}
    ranks = []
    try:
        for rank in ("0", "1"):
            own = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
            environment = {key: value for key, value in os.environ.items() if key != LAUNCHER_OPTIONS} | shared | own
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
