"""Tells an error of a full disk from others, in whatever words a library puts it; reports are left out then."""

import errno
from collections.abc import Callable

from ..errors import first_line
from ..log import get_logger

logger = get_logger(__name__)

_NUMBERS = {number for name in ("ENOSPC", "EDQUOT") if (number := getattr(errno, name, None)) is not None}
# safetensors and torch's distributed checkpoints keep the system's text alone; torch's archive does not even keep that,
# and says only that fewer bytes arrived than it wrote.
_TEXTS = ("No space left on device", "Disk quota exceeded", "unexpected pos", "file write failed")


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error, or one that it came from, is that of a disk or a quota without room."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, OSError) and cause.errno in _NUMBERS:
            return True
        if any(text in str(cause) for text in _TEXTS):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


class ReportWriter:
    """Writes reports of a training, which goes on without them while the disk is full; a warning says so once."""

    def __init__(self) -> None:
        self._told = False

    def write(self, what: str, write: Callable[[], None]) -> None:
        """Write something, or leave it out for lack of room.

        Args:
            what: its name in the warning.
            write: raises what it fails with.
        """
        try:
            write()
        except Exception as error:
            if not is_disk_full(error):
                raise
            if not self._told:
                logger.warning(
                    f"The disk is full: {what} could not be written ({first_line(error)}). The training goes on; free "
                    "room before its next checkpoint."
                )
            self._told = True
