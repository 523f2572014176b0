"""One run, one folder: a run holds its output folder from its start to its end, and another one waits or is refused.

Where the file system has record locks that all its machines see, they decide. Elsewhere a run on another machine is
known by its heartbeat: it touches its file every few seconds. The one that waits only watches for a change, so that no
clocks are compared.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import SimPOError
from ..log import get_logger
from ..record.full_disk import is_disk_full
from .lock_file import Holder, LockFile, this_process

logger = get_logger(__name__)

# It is never pushed to the Hub, like all files whose names start with "_".
LOCK = "_run.lock"
# All in seconds: how long a new run waits, how often a holder gives a sign of life, and after how long without one it
# is taken for dead, where nothing else tells.
WAIT = 15.0
BEAT = 10.0
SILENCE = 60.0
_POLL = 0.25
_UNKNOWN = "which has just begun or ended"


class FolderLock:
    """A folder that this process holds, or wants to hold.

    `uses` counts the parts of this process's run that are in it.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.uses = 0
        self._path = Path(os.path.abspath(folder)) / LOCK  # the working directory may change meanwhile
        self._file: LockFile | None = None
        self._self: Holder | None = None
        self._lost_to: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Hold the folder, as soon as its holder ends.

        Raises:
            SimPOError: the holder does not end, or the folder cannot be written.
        """
        began, pulse, said = time.monotonic(), _Pulse(), False
        while (holder := self._try(pulse)) is not None:
            undecided = isinstance(holder, Holder) and not holder.is_here() and not pulse.beats
            patience = SILENCE + WAIT if undecided else WAIT
            if time.monotonic() - began > patience:
                raise self._refusal(holder)
            if not said and isinstance(holder, Holder):
                sign = "or a sign of life, " if undecided else ""
                logger.info(
                    f"{self.folder} is in use by another run ({holder}). Waiting for its end, {sign}for "
                    f"{patience:.0f} s at most."
                )
                said = True
            time.sleep(_POLL)

    def release(self) -> None:
        """Give the folder back and remove the file; does nothing in a process that was forked meanwhile."""
        if self._file is None or os.getpid() != self.process:
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT)  # it may be waiting for a file system that does not answer
        self._look()
        if self._lost_to is None:
            self._file.remove()
        else:
            self._file.close()
        self._file = None

    def check(self, look: bool = True) -> None:
        """Check that no other run has taken the folder over.

        Args:
            look: whether to look into the file now. Otherwise what the last heartbeat saw counts.

        Raises:
            SimPOError: one has.
        """
        if look:
            self._look()
        if self._lost_to is not None:
            raise SimPOError(
                f"Another run ({self._lost_to}) has taken over {self.folder}: this one had given no sign of life for "
                f"{SILENCE:.0f} s or its {LOCK} was removed. It stops here and writes nothing more. To go on with this "
                "one instead, stop the other and use --resume_from_checkpoint."
            )

    def _try(self, pulse: "_Pulse") -> Holder | str | None:
        """Returns None if the folder is held by this process now, and otherwise its holder, as far as it is known."""
        file = self._open()
        held = False
        try:
            locked, there = file.try_lock(), file.holder()
            silent = _is_silent(there, file.changed(), pulse)
            free = there is None or (silent if not there.is_here() else locked or not there.is_running())
            # The last holder may have removed the file after it was opened here: then the next one makes another.
            if locked is not False and free and file.is_in_place():
                if silent:
                    logger.warning(
                        f"Taking over {self.folder} from a run that has given no sign of life for {SILENCE:.0f} s "
                        f"({there})."
                    )
                self._hold(file, locked=bool(locked))
                held = True
                return None
            return there or _UNKNOWN
        except OSError as error:
            if is_disk_full(error):
                raise unwritable(self.folder, error) from None
            if error.errno != errno.ESTALE:  # removed on another machine
                raise
            return _UNKNOWN
        finally:
            if not held:
                file.close()

    def _open(self) -> LockFile:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return LockFile(self._path)
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def _hold(self, file: LockFile, locked: bool) -> None:
        self._self = this_process()
        try:
            file.write(self._self)
        except OSError as error:
            # On a full disk the system's lock alone keeps others out: what has been trained must be saved all the same.
            if not locked or not is_disk_full(error):
                raise
        self._file = file
        self._thread = threading.Thread(target=self._beat, name="heartbeat of the folder", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._look()
            if self._lost_to is not None:
                return
            try:
                self._file.touch()  # type: ignore[union-attr]
            except OSError:  # the folder was removed, or its file system does not answer; the run will see for itself
                continue

    def _look(self) -> None:
        """See whether another run has written itself into the file, or has made another one."""
        if self._file is None or self._lost_to is not None or os.getpid() != self.process:
            return
        try:
            if not self._file.is_in_place():
                self._lost_to = "which made a new file" if self._path.exists() else None
            elif (there := self._file.holder()) is not None and there != self._self:
                self._lost_to = str(there)
        except OSError:  # a file system that does not answer now
            return

    def _refusal(self, holder: Holder | str) -> SimPOError:
        stop = "stop it"
        gone = f" If no such process is left, remove {self.folder / LOCK}."
        if isinstance(holder, Holder) and holder.is_here():
            stop, gone = f"stop it (kill {holder.pid})", ""
        return SimPOError(
            f"output_dir {self.folder} is in use by another run ({holder}), and two runs would destroy each other's "
            f"files. Wait for its end, {stop}, or set output_dir to another folder.{gone}"
        )


class _Pulse:
    """The heartbeat of a holder, as one that waits sees it; `beats` says that it was seen."""

    def __init__(self) -> None:
        self.beats = False
        self._last: Any = None
        self._since = 0.0

    def silence(self, beat: Any) -> float:
        """Returns the seconds for which `beat`, which changes with each beat, has been the same."""
        now = time.monotonic()
        if beat != self._last:
            self.beats = self._last is not None
            self._last, self._since = beat, now
        return now - self._since


def _is_silent(holder: Holder | None, changed: int, pulse: _Pulse) -> bool:
    """Returns whether a holder on another machine has given no sign of life for long."""
    if holder is None or holder.is_here():
        return False
    return pulse.silence((holder.id, changed)) >= SILENCE


def unwritable(folder: Path, error: OSError) -> SimPOError:
    """Returns the error for an output folder that cannot be written."""
    remedy = "Free room there, or set output_dir to a folder on another disk" if is_disk_full(error) else ""
    return SimPOError(
        f"output_dir {folder} cannot be written: {error.strerror}. {remedy or 'Set output_dir to a folder of yours'}."
    )


# The folders that are held for a run of this process, by their real paths.
_held: dict[str, FolderLock] = {}


@contextmanager
def one_run(args: TrainingArguments) -> Iterator[None]:
    """While entered, no other run can use the folder `args.output_dir`; it may be entered again meanwhile.

    The main process holds it for all processes of the run, and every one of them must enter.

    Raises:
        SimPOError: another run uses the folder, on every process; or another run has taken it over since it was entered
            first, on the main process.
    """
    key = _key(args)
    lock = _held_by_this_process(key)
    if lock is None:
        lock = FolderLock(Path(str(args.output_dir)))
        _in_main_process(lock.acquire, args)
        _held[key] = lock
    else:
        lock.check()
    lock.uses += 1
    try:
        yield
    finally:
        lock.uses -= 1
        if not lock.uses:
            del _held[key]
            lock.release()


def _held_by_this_process(key: str) -> FolderLock | None:
    lock = _held.get(key)
    return lock if lock is not None and lock.process == os.getpid() else None  # a fork has its parent's entries


def _key(args: TrainingArguments) -> str:
    return os.path.realpath(str(args.output_dir))


def _in_main_process(do: Callable[[], None], args: TrainingArguments) -> None:
    """Do something in the main process; a SimPOError of it is raised in every process."""
    problem = None
    if args.process_index == 0:
        try:
            do()
        except SimPOError as error:
            problem = error
    if args.world_size > 1:
        (problem,) = broadcast_object_list([problem])
    if problem is not None:
        raise problem


class LockCallback(TrainerCallback):
    """Stops a training whose folder another run has taken over, before it writes anything more."""

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._lock = _held_by_this_process(_key(args))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._lock is not None:
            self._lock.check(look=control.should_save)
