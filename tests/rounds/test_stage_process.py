"""A stage is a process of its own: its status, the signals that reach it, and its end with the one that started it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from simpo_trainer.rounds.stage_process import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]

# In place of a stage that works for hours is one whose scorer waits.
WAITING = """
import sys
from simpo_trainer.rounds.stage_process import run_stage
sys.exit(run_stage(sys.argv[1:]))
"""


def test_its_status_is_that_of_the_command(capfd):
    assert run_stage(["recipe", "list"]) == 0
    assert run_stage(["train", "nothing.yaml"]) == 1
    assert "nothing.yaml" in capfd.readouterr().err


@pytest.fixture
def waiting(tmp_path):
    """A process that runs a stage, and the stage, which works without an end."""
    (tmp_path / "rules.py").write_text(
        "import time\n\ndef score(prompt, answer, row):\n"
        f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n    time.sleep(600)\n"
    )
    (tmp_path / "answers.jsonl").write_text(
        '{"key": "1", "prompt": [{"role": "user", "content": "a"}], "answers": ["b", "c"]}\n'
    )
    words = ["annotate", str(tmp_path / "answers.jsonl"), "--score", f"{tmp_path / 'rules.py'}:score"]
    process = subprocess.Popen([sys.executable, "-c", WAITING, *words], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 90
    while not (tmp_path / "begun").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    [stage] = psutil.Process(process.pid).children()
    yield process, stage
    for each in (process, stage):
        if each.is_running() if isinstance(each, psutil.Process) else each.poll() is None:
            each.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_it(waiting, number):
    process, stage = waiting
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert not stage.is_running()
    assert "the same command goes on from there" in process.stderr.read()


def test_it_ends_with_the_process_that_started_it(waiting):
    process, stage = waiting
    process.kill()
    process.wait(timeout=30)
    _, alive = psutil.wait_procs([stage], timeout=30)
    assert not alive
