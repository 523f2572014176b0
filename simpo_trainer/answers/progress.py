"""Progress of long work in the log, with the time that is left."""

import time

from ..log import get_logger

logger = get_logger(__name__)

# Seconds between two lines.
_EVERY = 10.0


class Progress:
    """Tells in the log from time to time how far work is.

    Args:
        what: the things that are counted, in the plural.
        total: their number.
        done: those that were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what = what
        self._total = total
        self._before = done
        self._tokens = 0
        self._start = self._told = time.monotonic()

    def add_tokens(self, count: int) -> None:
        """Count tokens, whose pace is told too."""
        self._tokens += count

    def update(self, done: int) -> None:
        """Say how far the work is, unless that was just said.

        Args:
            done: the number of things that are done by now, those before included.
        """
        now = time.monotonic()
        if now - self._told < _EVERY:
            return
        self._told = now
        new, seconds = done - self._before, now - self._start
        pace = f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        left = f"; {_duration((self._total - done) * seconds / new)} left" if new else ""
        logger.info(f"{done:,} of {self._total:,} {self._what}{pace}{left}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
