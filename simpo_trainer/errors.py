"""The error for anything that a user can correct, and functions for its messages."""

import difflib
from collections.abc import Iterable


class SimPOError(ValueError):
    """A mistake in settings, data or environment: the message says what was found, what is needed, what to change.

    The command line prints only the message; a traceback means a defect of the software.
    """


# Below difflib's default of 0.6, so that "chosen_response" is near "chosen".
_NEAR = 0.55


def near(name: str, known: Iterable[str], count: int = 1, cutoff: float = _NEAR) -> list[str]:
    """Returns the known names with a similar spelling, the nearest first; case is ignored, and "-" equals "_".

    Args:
        name: the name that was given.
        known: the names that exist.
        count: return at most this many.
        cutoff: leave out names that are less alike than this, from 0 to 1.
    """
    folded: dict[str, list[str]] = {}
    for other in known:
        folded.setdefault(_folded(other), []).append(other)
    found = difflib.get_close_matches(_folded(name), folded, n=count, cutoff=cutoff)
    return [other for match in found for other in folded[match]][:count]


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def did_you_mean(name: str, known: Iterable[str], count: int = 2) -> str:
    """Returns " Did you mean x or y?" with the known names near `name`, or "" where no name is near."""
    found = near(name, known, count)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message without its full stop, or the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
