"""The first cause of a failure of several processes: the others fail a moment later because of it."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch.distributed as dist

from ..errors import SimPOError
from ..train.group_store import connect

# Seconds that a process which lost its connection waits for the cause, and that asking the store may take.
_WAIT = 2.0
_KEY = "first_cause"
# In the messages of gloo and NCCL, which are plain RuntimeErrors in places.
_LOST = (
    "closed by peer",
    "reset by peer",
    "connection closed",
    "connection refused",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "network error",
    "gloo/transport",
    "nccl error",
    "nccl communicator was aborted",
    "timed out waiting",
)


@dataclass(frozen=True)
class Failure:
    """The end of one process by an error.

    Args:
        rank: of the process.
        text: the error in words; those of a SimPOError alone, other errors begin with their type.
        expected: whether it is a SimPOError, which all processes may have alike.
        lost: whether the process only lost its connection to the others.
        time: seconds of its machine's clock.
        first: rank and text of the first cause of all processes, as far as this one knows it.
    """

    rank: int
    text: str
    expected: bool
    lost: bool
    time: float
    first: tuple[int, str] | None = None

    def as_text(self) -> str:
        """Returns it as JSON."""
        return json.dumps(asdict(self))


def read_failure(text: str) -> Failure | None:
    """Returns what `Failure.as_text` made; None of another text."""
    try:
        failure = Failure(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return Failure(**asdict(failure) | {"first": (failure.first[0], failure.first[1]) if failure.first else None})


def is_lost_connection(error: BaseException) -> bool:
    """Returns whether an error is that of a process which lost the others."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(words in str(error).lower() for words in _LOST)


def tell_failure(error: Exception) -> Failure:
    """Tell the other processes why this one ends, and learn from them which failed first.

    A process that lost its connection waits two seconds for the cause. Of an error that all have alike rank 0 shall
    be the one to end first, so the others give it a moment.
    """
    own = next((each for each in _chain(error) if not is_lost_connection(each)), None)
    rank = int(os.environ.get("RANK", "0"))
    shown = own or error
    text = str(shown) if isinstance(shown, SimPOError) else f"{type(shown).__name__}: {shown}".removesuffix(": ")
    first = None
    with suppress(Exception):  # a store that is gone: the failure itself is what counts
        first = _first(None if own is None else (rank, text))
    failure = Failure(rank, text, isinstance(own, SimPOError), own is None, time.time(), first)
    if failure.expected and rank:
        time.sleep(_WAIT / 4)
    return failure


def last_line(failures: Sequence[Failure]) -> str | None:
    """Returns the first cause in words; None where none of the processes knows it.

    A SimPOError that several processes have alike, or rank 0 alone, stays as it is. That of one process is named with
    its rank, in one line.
    """
    causes = sorted((each for each in failures if not each.lost), key=lambda each: each.time)
    told = next((each.first for each in failures if each.first), None)
    if told is None and not causes:
        return None
    rank, text = told or (causes[0].rank, causes[0].text)
    alike = {each.rank for each in causes if each.text == text and each.expected} | {rank}
    alone = rank == 0 and any(each.expected for each in causes) and not any(each.lost for each in failures)
    return text if len(alike) > 1 or alone else named(rank, text)


def named(rank: int, text: str) -> str:
    """Returns the line about the rank that failed first."""
    return f"Rank {rank} failed first: {' '.join(text.split())}"


def _first(own: tuple[int, str] | None) -> tuple[int, str] | None:
    """Returns rank and text of the first cause in the store, which is this process's own where there was none."""
    end = time.monotonic() + _WAIT
    store = connect(_WAIT)
    if own is not None:
        found = store.compare_set(_KEY, "", json.dumps(own))
        rank, text = json.loads(found)
        return rank, text
    while not store.check([_KEY]):
        if time.monotonic() > end:
            return None
        time.sleep(0.1)
    rank, text = json.loads(store.get(_KEY))
    return rank, text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and those in whose handling it came, the newest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
