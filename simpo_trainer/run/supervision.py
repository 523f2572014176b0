"""Run `accelerate launch` until its processes end: pass signals on to them, and show their error once."""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil  # a requirement of accelerate
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.elastic.rendezvous import RendezvousError

from ..errors import SimPOError
from ..log import get_logger
from ..train.stop import NOTHING_YET, STOP_SIGNALS
from .first_cause import Failure, last_line, read_failure
from .machines import JOIN, PORT
from .options import LAUNCHER_OPTIONS
from .stop_mark import leave_stop, stop_left, stop_mark

logger = get_logger(__name__)

# Seconds of CPU that no process has needed that came to its training.
_LOADING = 0.5
_SIGKILL = 9  # Windows has no name for it
# Seconds that a process which lost its connection may take to say so; one that a signal ended has failed before it.
_SAYING = 5


def supervise(words: Sequence[str], options: str, variables: Mapping[str, str] | None = None) -> int:
    """Run `accelerate launch` with `words`, and return the exit status of its processes.

    Without supervision, it ends with its own traceback when a process fails, and after Ctrl-C it kills processes that
    take more than 30 seconds to save their checkpoint.

    Args:
        words: the words after `accelerate launch`.
        options: the launcher's options, which the processes get in their environment.
        variables: environment variables for launcher and processes.

    Raises:
        SimPOError: accelerate refuses the words, a process ended with a SimPOError, or a process was killed; or other
            machines did not come, or were lost.
    """
    args = launch_command_parser().parse_args(list(words))
    os.environ.update({**(variables or {}), LAUNCHER_OPTIONS: options})
    # torch would kill the processes on signals that are passed on here. It needs at least one signal: SIGQUIT, which is
    # hardly ever sent.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    for name in ("multiprocessing.api", "agent.server.api", "rendezvous.dynamic_rendezvous"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with stop_mark(bool(args.max_restarts)), _signals_passed_on():
        try:
            launch_command(args)
        except (RendezvousError, DistError) as error:
            if (number := stop_left()) is not None:
                return 128 + number
            raise SimPOError(_without_others(args, error)) from error
        except ChildFailedError as error:
            return _status(list(error.failures.values()))
        except subprocess.CalledProcessError as error:
            return _exit_status(error.returncode, rank=0)
        except (ValueError, ImportError, OSError) as error:  # its text explains it: a port in use, for example
            raise SimPOError(f"accelerate launch: {error}") from error
        number = stop_left()
    if number is not None:
        return 128 + number
    if (args.num_machines or 1) > 1:
        logger.info("The processes of this machine have ended in order; rank 0 has saved what was trained.")
    return 0


def _without_others(args: Any, error: BaseException) -> str:
    """Returns the error of a launcher that has not met the launchers of the other machines, or has lost them."""
    place = f"{args.main_process_ip}:{args.main_process_port or PORT}"
    found = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"This machine has not met all {args.num_machines} machines at {place}, or has lost them "
        f"({type(error).__name__}: {found}). Call the same command on each machine within {JOIN // 60} minutes, with "
        f"ranks, if given, from 0 to {args.num_machines - 1}, each once, and let the firewall pass all ports between "
        "them. The run goes on from its last checkpoint."
    )


def leave_group_of_parent() -> None:
    """Leave the process group of the parent, so that Ctrl-C reaches a launched process once, from its supervisor.

    torch starts several processes outside the terminal's group; accelerate starts a single process inside it.
    """
    if LAUNCHER_OPTIONS in os.environ and os.getpgrp() == os.getpgid(os.getppid()):
        os.setsid()


def leave_to_parent(failure: Failure) -> bool:
    """Record how a launched process ends for its supervisor, which shows the first cause of all processes at the end.

    Returns:
        False if this process has no supervisor; then nothing is recorded.
    """
    if LAUNCHER_OPTIONS not in os.environ or "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    get_error_handler().record_exception(RuntimeError(failure.as_text()))
    return True


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Pass signals to this process on to the processes that it started."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        leave_stop(number)
        children = psutil.Process().children()
        if not children:
            # Processes that have ended may have trained; on several machines the launcher waits for the others'.
            if os.times().children_user < _LOADING:
                logger.info(NOTHING_YET)
            raise SystemExit(128 + number)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    # An ignored signal stays ignored, as nohup wants it.
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _status(failures: list[ProcessFailure]) -> int:
    """Returns the exit status of the process that failed first; others were ended because of it.

    Raises:
        SimPOError: a process recorded the first cause, or a signal killed the first.
    """
    recorded = {each.local_rank: found for each in failures if (found := _recorded(each))}
    if line := last_line(list(recorded.values())):
        raise SimPOError(line)

    def order(failure: ProcessFailure) -> tuple[bool, int, bool]:
        # Times are whole seconds. In the same second, a killed process made the others lose their connection.
        saying = _SAYING if failure.local_rank in recorded else 0
        return failure.exitcode == -signal.SIGTERM, failure.timestamp + saying, failure.exitcode != -_SIGKILL

    first = min(failures, key=order)
    return _exit_status(first.exitcode, first.local_rank)


def _recorded(failure: ProcessFailure) -> Failure | None:
    """Returns what the process left by `leave_to_parent`; the text follows the name of a class."""
    if not isinstance(failure.message, dict):
        return None
    return read_failure(failure.message["message"].partition(": ")[2])


def _exit_status(code: int, rank: int) -> int:
    """Returns the shell's exit status for a process's; a process ended by a signal passed on needs no message.

    Raises:
        SimPOError: another signal ended the process.
    """
    if code >= 0 or -code in STOP_SIGNALS:
        return code if code >= 0 else 128 - code
    name = signal.Signals(-code).name
    hint = " The usual reason is that the machine ran out of memory." if name == "SIGKILL" else ""
    raise SimPOError(f"Process {rank} was ended by {name}.{hint}")
