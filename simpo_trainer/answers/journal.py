"""The rows that are done, on disk as soon as they are: a group a line, so that a kill leaves whole groups."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SimPOError
from ..log import get_logger
from ..record.full_disk import is_disk_full

logger = get_logger(__name__)

_SUFFIX = ".partial"


class Journal:
    """The finished rows of a file that is being made, beside it, under `NAME.partial`.

    Args:
        target: the file that is being made.
        identity: what decides its rows, by name; a journal of another identity is refused.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.path = target.with_name(target.name + _SUFFIX)
        self._target = target
        self._identity = json.loads(json.dumps(dict(identity)))
        self.rows: dict[str, dict[str, Any]] = {}

    def open(self) -> None:
        """Read the rows that an earlier call has left, or begin.

        Raises:
            SimPOError: the journal is of another identity, or the disk is full.
        """
        if not self.path.exists():
            self._append({"identity": self._identity})
            return
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                content = _content(line)
                if content is None:  # a kill in the middle of writing it
                    break
                if number == 0:
                    self._check(content["identity"])
                else:
                    self.rows.update({row["key"]: row for row in content["rows"]})
                end += len(line)
        os.truncate(self.path, end)
        if end == 0:
            self._append({"identity": self._identity})

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, each with its `key`; they are on the disk, all or none of them, when this returns.

        Raises:
            SimPOError: the disk is full; what was written before is kept.
        """
        self._append({"rows": [dict(row) for row in rows]})
        self.rows.update({row["key"]: dict(row) for row in rows})

    def remove(self) -> None:
        """Remove the journal, once its rows are in the file."""
        self.path.unlink(missing_ok=True)

    def _append(self, content: Mapping[str, Any]) -> None:
        line = (json.dumps(content) + "\n").encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, before)
            raise no_room(self._target, error) from error

    def _check(self, found: Mapping[str, Any]) -> None:
        if differences := identity_differences(found, self._identity):
            raise SimPOError(
                f"{self.path} was begun with other settings: {'; '.join(differences)}. Give the same settings to go on "
                f"with it, or another output; or remove it to begin anew."
            )


def identity_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns a text for each part of an identity that differs; the identities are as JSON holds them."""
    return [
        f"{name} {_shown(found.get(name))} there, {_shown(wanted.get(name))} here"
        for name in dict.fromkeys((*found, *wanted))
        if found.get(name) != wanted.get(name)
    ]


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """While entered, this process alone writes a file; a process that is killed no longer holds it.

    Raises:
        SimPOError: another process writes it, or its folder cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise SimPOError(
            f"Another process is writing {target}. Wait until it is done, or give another output."
        ) from None
    except OSError as error:
        raise SimPOError(f"{target} cannot be written: {error.strerror or error}. Give another output.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def no_room(target: Path, error: OSError) -> SimPOError:
    """Returns the error for a file that could not be written; the command goes on from where it was."""
    why = "the disk is full" if is_disk_full(error) else str(error.strerror or error)
    return SimPOError(
        f"{target} cannot be written: {why}. What was finished before is kept: free room, and give the same command "
        "again."
    )


def _content(line: bytes) -> dict[str, Any] | None:
    """Returns what a line holds; None where it was not written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and ("identity" in content or "rows" in content) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
