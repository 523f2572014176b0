"""Processes end with the one that started them: nothing of a run goes on beside the job that is started again.

Torch and transformers are not imported here: the command line calls this before they are loaded.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from functools import cache, partial

import psutil  # a requirement of accelerate

from .options import LAUNCHER_OPTIONS, STAGE

# What `simpo iterate`, `simpo train --launcher`, torchrun and `accelerate launch` of several processes put into the
# environment, what other launchers do, and `accelerate launch` of one. Not WORLD_SIZE: clusters set it where nothing
# was launched.
_OWN = (STAGE, LAUNCHER_OPTIONS, "TORCHELASTIC_RUN_ID")
_OTHER = "LOCAL_RANK"
_ACCELERATE_SINGLE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"
# Processes that are started by hand, with these variables, outlive their shell under nohup.
_SHELLS = frozenset("sh bash dash zsh ksh fish csh tcsh busybox".split())
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_POLL = 0.5  # seconds


def end_with_launcher() -> None:
    """End this process as soon as the launcher that started it is gone; without a launcher, do nothing.

    By SIGKILL, without a checkpoint: a launcher that passes signals on is gone before its processes only if it was
    killed, and what they save from then on they may save beside the job that was started again in the same folder.
    `accelerate launch` of one process ends of every signal, also of one to the whole group, so that its process gets
    SIGTERM instead, and may finish its step and save. Call it early, in the main thread. On Windows it does nothing.
    """
    if os.name != "posix":
        return
    own = any(mark in os.environ for mark in _OWN)
    single = not own and _OTHER not in os.environ
    parent = os.getppid()
    if single and _ACCELERATE_SINGLE not in os.environ or _is_shell(parent):
        return
    number = signal.SIGTERM if single else signal.SIGKILL
    # The kernel of Linux does it whatever this process is doing, but at the end of the thread that started it. That is
    # the main one in these launchers; of others it is not known.
    if not ((own or single) and _asked_kernel(number)):
        threading.Thread(target=_watch, args=(parent, number), name="launcher-watch", daemon=True).start()
    if os.getppid() != parent:  # it has ended in between
        os.kill(os.getpid(), number)


@cache
def end_forks_with_parent() -> None:
    """Have the processes that this one forks from now on ended with it, on Linux.

    Those of a library's pool would wait for work for ever, and workers that load batches for some seconds, if this
    process is killed.
    """
    if sys.platform == "linux":
        os.register_at_fork(after_in_child=partial(_asked_kernel, signal.SIGKILL))


def _is_shell(process: int) -> bool:
    try:
        return psutil.Process(process).name().lstrip("-") in _SHELLS
    except psutil.Error:  # it has just ended, or is outside of a container
        return False


def _asked_kernel(number: int) -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) == 0


def _watch(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL)
    os.kill(os.getpid(), number)
