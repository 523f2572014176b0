"""The file that a run holds in its output folder: a record lock of the system, and a text that tells who holds it.

A record lock (`fcntl.lockf`) ends with its process, whatever ends that, and forked workers do not inherit it: one that
outlives its parent keeps nothing, as it would with `flock`. The price is that a process loses the lock when it closes
any descriptor of the file, so it must never open the file a second time while it holds it.
"""

import errno
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # a requirement of accelerate

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Start times of processes count from a clock that may be set anew; a process that got a dead one's number is younger.
_SAME_START = 10.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder, as it describes itself in the file.

    `machine` tells machines of one host name apart; `process_started` is in seconds and tells a process from a later
    one with its number; `started`, in UTC, is when it took the folder; `id` is new each time that a folder is taken.
    """

    host: str
    machine: str
    pid: int
    process_started: float
    started: str
    id: str

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.started} UTC"

    def is_here(self) -> bool:
        """Returns whether it was on this machine, since the machine was started."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    def is_running(self) -> bool:
        """Returns whether this process of this machine is another one than the caller and still running."""
        if self.pid == os.getpid():  # left by a file system on which it could not be removed
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started) < _SAME_START
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def this_process() -> Holder:
    """Returns a description of this process, with a new id."""
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        id=uuid.uuid4().hex,
    )


def _machine() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"


class LockFile:
    """The file, open.

    Args:
        path: it is made if it is not there.

    Raises:
        OSError: it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def try_lock(self) -> bool | None:
        """Returns whether this process has the record lock now; None where the file system has no such locks."""
        if fcntl is None:
            return None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
        return True

    def is_in_place(self) -> bool:
        """Returns whether its path still leads to this file: its last holder may have removed it."""
        try:
            there, own = os.stat(self.path), os.fstat(self._descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return False
        return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

    def holder(self) -> Holder | None:
        """Returns who has written into it; None if nobody has, or if it cannot be read."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        try:
            return Holder(**json.loads(os.read(self._descriptor, 4096)))
        except (ValueError, TypeError):  # empty, or just being written
            return None

    def write(self, holder: Holder) -> None:
        """Write a holder in place of what is there."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, (json.dumps(asdict(holder)) + "\n").encode())
        os.fsync(self._descriptor)  # other machines read it

    def changed(self) -> int:
        """Returns the time of its last change, in the file system's own clock."""
        return os.fstat(self._descriptor).st_mtime_ns

    def touch(self) -> None:
        """Set the time of its last change to now. The file is not opened, which would cost the record lock."""
        os.utime(self.path)

    def remove(self) -> None:
        """Remove and close it. Whoever has opened it meanwhile finds it empty and out of place."""
        try:
            os.ftruncate(self._descriptor, 0)
            if self.is_in_place():
                os.unlink(self.path)
        except OSError:  # the folder is gone, or the system keeps files that are open
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Close it, and with that give up the record lock."""
        os.close(self._descriptor)
