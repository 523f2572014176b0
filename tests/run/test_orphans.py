"""A process ends with the launcher that started it, and only then."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from processes import still_running
from simpo_trainer.run import orphans

# They wait for other processes.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Starts the rank, and stays.
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
RANK = """
import os, signal, sys, time
from simpo_trainer.run import orphans
signal.signal(signal.SIGTERM, lambda *received: (print("SIGTERM", flush=True), os._exit(0)))
{before}
orphans.end_with_launcher()
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""
WATCHING = "orphans._asked_kernel = lambda number: False"


@pytest.fixture
def orphan():
    """Makes an orphan of a process with these marks in its environment: the process, and its output from then on."""
    started = []

    def make(marks, before="", launcher=(sys.executable, "-c", LAUNCHER)):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_RANK", "TORCHEL"))}
        process = subprocess.Popen(
            [*launcher, RANK.format(before=before)],
            env=inherited | {"PYTHONPATH": str(ROOT)} | dict.fromkeys(marks, "1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        rank = psutil.Process(int(process.stdout.readline()))
        started.append((process, rank))
        assert rank.ppid() == process.pid
        process.kill()
        process.wait()
        return rank, process.stdout

    yield make
    for process, rank in started:
        if rank.is_running():
            rank.kill()
        process.stdout.close()


@pytest.mark.parametrize(
    ("mark", "before", "said"),
    [
        ("SIMPO_LAUNCHER_OPTIONS", "", ""),
        ("SIMPO_LAUNCHER_OPTIONS", WATCHING, ""),
        ("TORCHELASTIC_RUN_ID", "", ""),
        ("LOCAL_RANK", "", ""),
        ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "", "SIGTERM\n"),
        ("ACCELERATE_DYNAMO_USE_FULLGRAPH", WATCHING, "SIGTERM\n"),
    ],
)
def test_a_process_ends_with_its_launcher(orphan, mark, before, said):
    """At once; the launcher that ends of a signal that reaches both leaves its process the time to save."""
    rank, output = orphan([mark], before)
    assert not still_running([rank], 5)
    assert output.read() == said


@pytest.mark.parametrize(
    ("marks", "launcher"),
    [
        (["WORLD_SIZE"], (sys.executable, "-c", LAUNCHER)),
        (["LOCAL_RANK"], ("bash", "-c", f'{sys.executable} -c "$0" & wait')),
    ],
)
def test_a_process_without_a_launcher_goes_on(orphan, marks, launcher):
    """As one does that a user has started under nohup, from a shell that ends."""
    rank, _ = orphan(marks, launcher=launcher)
    assert still_running([rank], 2 * orphans._POLL)


FORKING = """
import os, time
from simpo_trainer.run.orphans import end_forks_with_parent
end_forks_with_parent()
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_forked_processes_end_with_a_process_that_is_killed():
    """As those of a library's pool, which would wait for work."""
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as process:
        forked = psutil.Process(int(process.stdout.readline()))
        process.kill()
        left = still_running([forked], 5)
        for one in left:
            one.kill()
    assert not left


def test_a_launcher_that_ended_in_between_is_noticed(monkeypatch):
    """The kernel tells of an end to come only."""
    sent, parents = [], iter([4000, 1])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(orphans, "_asked_kernel", lambda number: True)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    orphans.end_with_launcher()
    assert sent == [(os.getpid(), signal.SIGKILL)]
