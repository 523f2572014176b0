"""Runs `accelerate launch` until its processes have ended: signals reach them, and their error is shown once."""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil  # a requirement of accelerate
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler

from ..errors import SimPOError
from .options import LAUNCHER_OPTIONS

_PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def supervise(words: Sequence[str], options: str) -> int:
    """Do what `accelerate launch` with `words` does, and return the exit status of its processes.

    Started by itself, it would end in a traceback of its own where a process fails, and after Ctrl-C kill processes
    that take more than 30 seconds to save their checkpoint.

    Args:
        words: what follows `accelerate launch`.
        options: the launcher's options, which the processes find in their environment.

    Raises:
        SimPOError: accelerate refuses the words, a process ended with such an error, or one was killed.
    """
    args = launch_command_parser().parse_args(list(words))
    os.environ[LAUNCHER_OPTIONS] = options
    # The signals that are passed on here, torch would answer by killing. It must be left one, and nobody sends this.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with _signals_passed_on():
        try:
            launch_command(args)
        except ChildFailedError as error:
            return _status(list(error.failures.values()))
        except subprocess.CalledProcessError as error:
            return _exit_status(error.returncode, rank=0)
        except (ValueError, ImportError, OSError) as error:  # its text says what: a port in use, for one
            raise SimPOError(f"accelerate launch: {error}") from error
    return 0


def leave_group_of_parent() -> None:
    """Called by a launched process: Ctrl-C in the terminal is to reach it once, from the process that supervises it.

    torch starts several processes so, accelerate a single one in the group that the terminal signals.
    """
    if LAUNCHER_OPTIONS in os.environ and os.getpgrp() == os.getpgid(os.getppid()):
        os.setsid()


def leave_to_parent(error: SimPOError) -> bool:
    """Record the error of a launched process for the supervising one, which shows it once for all processes.

    Returns:
        False if no process supervises this one; nothing is recorded then.
    """
    if LAUNCHER_OPTIONS not in os.environ or "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    get_error_handler().record_exception(error)
    return True


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Pass the signals that this process gets on to the processes that it started."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        children = psutil.Process().children()
        if not children:
            raise SystemExit(128 + number)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    # One that is ignored stays so: nohup means it.
    handled = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _status(failures: list[ProcessFailure]) -> int:
    """The exit status of the process that failed first; those that were ended because of it come after it."""

    def order(failure: ProcessFailure) -> tuple[bool, bool, int, bool]:
        # Times are whole seconds; in the same one, a killed process is the reason why another lost its connection.
        told, killed = isinstance(failure.message, dict), failure.exitcode == -signal.SIGKILL
        return not told, failure.exitcode == -signal.SIGTERM, failure.timestamp, not killed

    first = min(failures, key=order)
    if isinstance(first.message, dict):  # by `leave_to_parent`, after the name of the class
        raise SimPOError(first.message["message"].partition(": ")[2])
    return _exit_status(first.exitcode, first.local_rank)


def _exit_status(code: int, rank: int) -> int:
    """The shell's status for a process's: what a signal that was passed on ended, is no error to explain."""
    if code >= 0 or -code in _PASSED_ON:
        return code if code >= 0 else 128 - code
    name = signal.Signals(-code).name
    hint = " The usual reason is that the machine ran out of memory." if name == "SIGKILL" else ""
    raise SimPOError(f"Process {rank} was ended by {name}.{hint}")
