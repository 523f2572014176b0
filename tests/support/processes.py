"""Processes that are waited for, be they children or not."""

import time
from collections.abc import Sequence

import psutil


def still_running(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after so many seconds; a container may keep the ended ones as zombies."""
    end = time.monotonic() + seconds
    while (left := [one for one in processes if _runs(one)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
