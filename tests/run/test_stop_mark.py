"""A stop that was asked for is not followed by a restart; launchers that do not meet end with a sentence."""

import os
import signal

import psutil
import pytest
from torch.distributed import DistNetworkError
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from simpo_trainer.errors import SimPOError
from simpo_trainer.run import supervision
from simpo_trainer.run.stop_mark import STOP_MARK, leave_stop, stop_left, stop_mark
from simpo_trainer.run.supervision import supervise

SEVERAL = ["--num_processes", "2", "--num_machines", "2", "--main_process_ip", "10.0.0.1", "--rdzv_backend", "c10d"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop(STOP_MARK, None)


def test_a_mark_is_there_only_where_processes_start_anew():
    with stop_mark(False):
        assert not leave_stop(15) and stop_left() is None
    with stop_mark(True):
        assert stop_left() is None and leave_stop(15) and stop_left() == 15
    assert STOP_MARK not in os.environ


def test_the_status_is_that_of_the_signal_that_a_process_left(monkeypatch):
    """Its own status was 0, so that nothing was started anew."""
    monkeypatch.setattr(supervision, "launch_command", lambda args: leave_stop(signal.SIGUSR1))
    assert supervise([*SEVERAL, "--max_restarts", "1", "script.py"], "") == 128 + signal.SIGUSR1
    assert supervise([*SEVERAL, "script.py"], "") == 0


def test_a_signal_that_is_passed_on_leaves_the_mark(monkeypatch):
    """Processes that it ends before they train are started anew, and end by the mark."""
    child = type("Child", (), {"send_signal": lambda self, number: None})()
    monkeypatch.setattr(psutil, "Process", lambda: type("Own", (), {"children": lambda self: [child]})())
    monkeypatch.setattr(supervision, "launch_command", lambda args: os.kill(os.getpid(), signal.SIGTERM))
    assert supervise([*SEVERAL, "--max_restarts", "1", "script.py"], "") == 128 + signal.SIGTERM


@pytest.mark.parametrize("error", [RendezvousTimeoutError("late"), DistNetworkError("refused")])
def test_machines_that_do_not_meet(monkeypatch, error):
    def launch(args):
        raise error

    monkeypatch.setattr(supervision, "launch_command", launch)
    with pytest.raises(SimPOError, match="not met all 2 machines at 10.0.0.1:29500, or has lost them .*(late|refused)"):
        supervise([*SEVERAL, "script.py"], "")
