"""The progress of long work in the log: how much is done, and the time left."""

import time

from ..log import get_logger

logger = get_logger(__name__)

# Seconds between two lines, and before the first one.
_INTERVAL = 10.0


class Progress:
    """Tells the progress of one piece of work, from its construction on.

    Args:
        what: the name of the work in the lines.
        total: how much there is to do.
        done: how much an earlier call has done; it does not count for the pace.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._first = what, total, done
        self._begin = self._told = time.monotonic()

    def rate(self, count: int) -> float:
        """Returns how many of a count are made in a second, since the work began."""
        return count / max(time.monotonic() - self._begin, 1e-9)

    def update(self, done: int, extra: str = "") -> None:
        """Log a line, unless the last one is less than ten seconds old.

        Args:
            done: how much is done by now, with what was done before.
            extra: what the line ends with.
        """
        now = time.monotonic()
        if now - self._told < _INTERVAL:
            return
        self._told = now
        more = done - self._first
        left = f", {_clock((now - self._begin) / more * (self._total - done))} left" if more > 0 else ""
        logger.info(f"{self._what}: {done:,} of {self._total:,}{left}{f', {extra}' if extra else ''}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
