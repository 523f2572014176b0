"""Signals to stop: while a model trains, finish the step, save a checkpoint and end; at other times end at once.

Torch and transformers are not imported here: the command line handles signals while they are loaded, which takes long.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ..log import get_logger

logger = get_logger(__name__)

# The message for a signal before training; also true of a run that was to go on from a checkpoint.
NOTHING_YET = "Stopped before the first step: nothing was trained or saved since the start."

# Ctrl-C; what schedulers send; and a terminal that closes. Windows has the first two alone.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)
# Seconds within which a second signal other than Ctrl-C is the first one again: schedulers signal a whole group, and
# its launcher passes the signal on; some send two kinds together.
_SAME = 2.0


class StopRequest:
    """While entered, `STOP_SIGNALS` ask for a stop. One that was ignored before stays so, as `nohup` wants it.

    At first a signal ends the process at once, as it does without handlers. While :meth:`deferred`, it is only
    remembered in `number`, and a second one ends the process. Signal handlers belong to the main thread; entered in
    another one it does nothing. It may be entered again while it is entered. Processes that are forked meanwhile do not
    defer.

    Args:
        at_once: a message to log when a signal ends the process at once; it may be replaced while entered.
    """

    def __init__(self, at_once: str | None = None) -> None:
        self.at_once = at_once
        self.number: int | None = None
        self._since = 0.0
        self._process = self._parent = 0
        self._deferred = False
        self._entered = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Returns whether a signal came that was deferred."""
        return self.number is not None

    def __enter__(self) -> "StopRequest":
        self._entered += 1
        if self._entered == 1:
            self.number, self._process, self._parent = None, os.getpid(), os.getppid()
            if threading.current_thread() is threading.main_thread():
                handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
                self._previous = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._entered -= 1
        if not self._entered:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While entered, a signal is remembered instead of obeyed."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def heeded(self, at_once: str) -> Iterator[None]:
        """While entered, a signal ends the process at once, also inside of :meth:`deferred`; so does one that came.

        Args:
            at_once: the message for it from now on.
        """
        before, self._deferred, self.at_once = self._deferred, False, at_once
        try:
            self.obey()
            yield
        finally:
            self._deferred = before

    def obey(self) -> None:
        """End the process, in order, if a signal came that was deferred and nothing has acted on since."""
        number, self.number = self.number, None
        if number is None:
            return
        self._say()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _say(self) -> None:
        if self.at_once and os.getpid() == self._process:  # not in a forked process, whose parent says it
            logger.info(self.at_once)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or os.getpid() != self._process:
            self._say()
            _end_now(number)
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            name = "Interrupted" if number == signal.SIGINT else f"Asked to stop by {signal.Signals(number).name}"
            again = (
                "Press Ctrl-C again to stop at once." if number == signal.SIGINT else "Another signal stops at once."
            )
            logger.info(f"{name}: finishing the step, then saving a checkpoint. {again}")
        elif number == signal.SIGTERM and os.getppid() != self._parent:
            # No wish to end at once: it tells that the launcher is gone (run/orphans.py), mostly of the same signal.
            self._parent = os.getppid()
        elif number == signal.SIGINT or time.monotonic() - self._since > _SAME:
            _end_now(number)


def _end_now(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    # Not by an exception: it would be raised in whatever runs, and some libraries catch everything.
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
