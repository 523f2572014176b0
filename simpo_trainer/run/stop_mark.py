"""A stop that was asked for is no failure: a launcher that starts failed processes anew must not do so after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Its value: a file in which the number of the signal is left. It is set where the launcher starts processes anew.
STOP_MARK = "SIMPO_STOP_MARK"


@contextmanager
def stop_mark(wanted: bool) -> Iterator[None]:
    """While entered, processes and their launcher on this machine share a mark, if `wanted`."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="simpo-") as folder:
        os.environ[STOP_MARK] = str(Path(folder) / "stopped")
        try:
            yield
        finally:
            del os.environ[STOP_MARK]


def leave_stop(number: int) -> bool:
    """Leave the number of the signal; returns False, and does nothing, where nothing is started anew."""
    path = os.environ.get(STOP_MARK)
    if not path:
        return False
    Path(path).write_text(str(number), encoding="ascii")
    return True


def stop_left() -> int | None:
    """Returns the number that was left on this machine."""
    try:
        return int(Path(os.environ[STOP_MARK]).read_text(encoding="ascii"))
    except (KeyError, OSError, ValueError):
        return None
