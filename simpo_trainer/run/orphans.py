"""A process that a launcher started ends with it: nothing of a run goes on beside the job that is started again.

Torch and transformers are not imported here: the command line calls this before they are loaded.
"""

import ctypes
import os
import signal
import sys
import threading
import time

import psutil  # a requirement of accelerate

from .options import LAUNCHER_OPTIONS

# What `simpo train --launcher`, torchrun, other launchers of several processes, and `accelerate launch` of one process
# put into the environment. WORLD_SIZE is not among them: clusters set it where nothing was launched.
_MARKS = (LAUNCHER_OPTIONS, "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "ACCELERATE_DYNAMO_USE_FULLGRAPH")
# Processes that are started by hand, with these variables, outlive their shell under nohup.
_SHELLS = frozenset("sh bash dash zsh ksh fish csh tcsh busybox".split())
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_POLL = 0.5  # seconds


def end_with_launcher() -> None:
    """End this process by SIGKILL as soon as the launcher that started it is gone; without a launcher, do nothing.

    At once and without a checkpoint: a launcher that was killed cannot pass anything on, and what a process saves from
    then on it may save beside the job that was started again in the same folder. Call it in the main thread, and early.
    On Windows it does nothing.
    """
    if os.name != "posix" or not any(mark in os.environ for mark in _MARKS):
        return
    parent = os.getppid()
    if _is_shell(parent):
        return
    if not _asked_kernel():
        threading.Thread(target=_watch, args=(parent,), name="launcher-watch", daemon=True).start()
    _end_without(parent)  # it may have ended in between


def _is_shell(process: int) -> bool:
    try:
        return psutil.Process(process).name().lstrip("-") in _SHELLS
    except psutil.Error:  # it has just ended, or is outside of a container
        return False


def _asked_kernel() -> bool:
    """Returns whether the kernel will end this process with its parent, whatever it does then, as Linux can.

    Strictly, with the thread that started it, which is the main one in torchrun and accelerate.
    """
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0


def _watch(parent: int) -> None:
    while True:
        _end_without(parent)
        time.sleep(_POLL)


def _end_without(parent: int) -> None:
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
