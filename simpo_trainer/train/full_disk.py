"""A run on a full disk: a checkpoint is written whole or not at all, and the trained model waits for room."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import SimPOError, first_line
from ..log import get_logger
from ..record.folders import checkpoints, step_of
from ..record.full_disk import is_disk_full
from ..record.seal import begin_checkpoint, remove_checkpoint, seal_checkpoint
from .checkpoints import answer_of_main
from .room import SMALL_FILES, WEIGHTS, agreed, free_bytes, is_split, rescue_dir, too_little
from .stop import StopRequest

logger = get_logger(__name__)

# Seconds between two attempts to save the trained model. Far below the time after which a process that waits for
# another one gives up: all of them meet after each attempt.
WAIT = 60.0
_LOOK = 0.5


class CheckpointAttempt:
    """The writing of one checkpoint. Without room all of it is removed, and every process gets the same error.

    An error and not a warning: a run that trains on without checkpoints loses all of that to the next failure, and
    who looks at its log would not see so. The run stops where it loses least, right behind a whole checkpoint.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.
        folder: that of the checkpoint.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self.trainer = trainer
        self.folder = folder
        self._problem = ""
        self._best_before = trainer.state.best_model_checkpoint

    def begin(self) -> bool:
        """Look for room, and make the folder; every process must call it.

        Returns:
            False if the training can end without this checkpoint, see :meth:`seal`.

        Raises:
            SimPOError: there is no room.
        """
        writes = self.trainer.args.should_save
        problem = agreed(self.trainer.room.checkpoint_problem(self.folder.parent) if writes else "")
        if problem:
            return self._give_up(problem)
        with self.noting():
            if writes:
                begin_checkpoint(self.folder)
        # Also a barrier. transformers asks every process whether the folder of the best checkpoint is there. With
        # checkpoints in shards the fastest process would make it, and those that disagree wait for each other at the
        # end of the run.
        problem = agreed(self._problem)
        return self._give_up(problem) if problem else True

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While entered, an error of a full disk waits until all processes can be told, so that none waits for ever."""
        try:
            yield
        except SimPOError:
            raise
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._problem = self._problem or first_line(error)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While entered, transformers writes the checkpoint.

        Raises:
            SimPOError: there is no room, and the model is split. Its other processes may be waiting for the part of
                this one, so that it cannot meet them: they find the same error, or the launcher ends them.
        """
        with self.noting():
            yield
        if self._problem and is_split(self.trainer):
            self._remove()
            raise self._error(self._problem)

    def seal(self, facts: dict[str, Any]) -> bool:
        """Seal what all processes have written; every process must call it.

        Args:
            facts: what the seal shall hold.

        Returns:
            False if there is no checkpoint, and the training can end without one: it was at its end, where the trained
            model follows, which waits for room.

        Raises:
            SimPOError: there was no room.
        """
        with self.noting():
            if self.trainer.args.should_save and not self._problem:
                seal_checkpoint(self.folder, facts)
        if problem := agreed(self._problem):
            return self._give_up(problem)
        if self.trainer.args.should_save:
            self.trainer.room.learn(self.folder)
        return True

    def _give_up(self, problem: str) -> bool:
        trainer = self.trainer
        self._remove()
        trainer.state.best_model_checkpoint = self._best_before
        error = SimPOError(answer_of_main(lambda: str(self._error(problem))))  # one text for all, with its numbers
        at_end = trainer.state.global_step >= trainer.state.max_steps
        if at_end and not trainer.interrupted and not trainer.args.load_best_model_at_end:
            if trainer.args.should_save:
                logger.warning(f"{error} This run has just made its last step, and ends without that checkpoint.")
            return False
        trainer.interrupted = False  # there is no checkpoint of this step to go on from
        raise error

    def _remove(self) -> None:
        if self.trainer.args.should_save:
            with suppress(OSError):  # its seal is open: what is left of it does not count
                remove_checkpoint(self.folder)

    def _error(self, problem: str) -> SimPOError:
        needed, free = self.trainer.room.of_checkpoint(), free_bytes(self.folder.parent)
        numbers = too_little(needed, free)
        reason = "" if problem == numbers else f" ({problem})"
        stop = "The run was to stop, but its " if self.trainer.interrupted else ""
        return SimPOError(
            f"{stop}{self.folder.name} could not be saved: too little room in {self.folder.parent}{reason}; {numbers}. "
            f"Nothing of it is left. {last_whole(self.trainer)} Free room there, and run the same command again (in "
            "Python trainer.train(resume_from_checkpoint=True))."
        )


def last_whole(trainer: Any) -> str:
    """Returns a sentence that names the checkpoint from which a run can go on."""
    there = checkpoints(Path(str(trainer.args.output_dir)))
    own = [folder for folder in there if step_of(folder) <= trainer.state.global_step]
    if last := own[-1] if own else trainer.resumed_from:
        return f"The last whole checkpoint, {last}, stands: the run goes on from it."
    return "There is no earlier checkpoint: the run would start over."


class EndSaves:
    """Saves what a run leaves at its end, and tries again while the disk is full.

    `rescued` is the folder of the trained model if that had to go to `rescue_dir`. Then what has no room in
    `output_dir` is left out, with a warning.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer` that has trained.
        output_dir: its folder.
    """

    def __init__(self, trainer: Any, output_dir: Path) -> None:
        self.trainer = trainer
        self.output_dir = output_dir
        self.rescued: Path | None = None

    def model(self, save: Callable[[Path], None]) -> Path:
        """Save the trained model, and return the folder that it is in; every process must call it.

        Args:
            save: writes the model into a folder.
        """
        while problem := self._try(save, self.output_dir):
            if (instead := self._rescue_folder()) and not self._try(save, instead):
                self.rescued = instead
                logger.warning(f"{self.output_dir} has no room for the trained model ({problem}): it is in {instead}.")
                return instead
            self._wait("The trained model", problem, last_whole(self.trainer))
        return self.output_dir

    def small(self, what: str, write: Callable[[], None]) -> bool:
        """Write small files into the folder of the run; every process must call it.

        Args:
            what: their name in messages.
            write: called again after each failure.

        Returns:
            Whether they are written.
        """
        while problem := self._attempt(write, SMALL_FILES):
            if self.rescued:
                logger.warning(f"{what} could not be written into {self.output_dir}: {problem}.")
                return False
            self._wait(what, problem, f"The trained model is in {self.output_dir}.")
        return True

    def _try(self, save: Callable[[Path], None], folder: Path) -> str:
        """Returns why the model cannot be saved in a folder, "" if it was."""
        needed, problem, before = self.trainer.room.of_model(folder), "", _states(folder)
        if self.trainer.args.should_save and (free := free_bytes(folder)) is not None and free < needed:
            problem = too_little(needed, free)
        if problem := agreed(problem) or self._attempt(lambda: save(folder), needed):
            # A half of a model looks like one, and takes the room away.
            for file, state in _states(folder).items():
                if self.trainer.args.should_save and before.get(file) != state:
                    file.unlink(missing_ok=True)
        return problem

    def _attempt(self, write: Callable[[], None], needed: int) -> str:
        problem = ""
        try:
            write()
        except Exception as error:
            if not is_disk_full(error):
                raise
            problem = f"{too_little(needed, free_bytes(self.output_dir))} ({first_line(error)})"
        return agreed(problem)

    def _rescue_folder(self) -> Path | None:
        """Returns a new folder in `rescue_dir`, in which another run may have left its model."""
        if (parent := rescue_dir(self.trainer)) is None:
            return None
        answer = answer_of_main(lambda: str(_new_folder(parent, self.output_dir.absolute().name) or ""))
        return Path(answer) if answer else None

    def _wait(self, what: str, problem: str, stands: str) -> None:
        """Wait until the next attempt; a signal to stop that any process gets ends all of them."""
        stop: StopRequest = self.trainer.stop_request
        logger.warning(
            f"{what} has no room in {self.output_dir}: {problem}. The next attempt is in {WAIT:.0f} s; free room there."
        )
        pause(stop)
        if number := self.trainer.agreed_signal():
            stop.number = number
            with stop.heeded(f"Stopped while waiting for room: {what} is not saved. {stands}"):
                pass


def pause(stop: StopRequest) -> None:
    """Sleep for `WAIT` seconds, or until a signal asks for a stop."""
    end = time.monotonic() + WAIT
    while not stop.requested and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK))


def _new_folder(parent: Path, name: str) -> Path | None:
    number, folder = 1, parent / name
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{name}-{number}"
        except OSError:
            return None


def _states(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Returns what tells whether a file of weights was written since, by its path."""
    found = {}
    for file in (file for pattern in WEIGHTS for file in folder.glob(pattern)):
        state = file.stat()
        found[file] = (state.st_mtime_ns, state.st_ino, state.st_size)
    return found
