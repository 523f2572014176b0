"""`resume_from_checkpoint: auto`: one command that starts a run, goes on with it, or says that it is finished."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SimPOError
from ..log import get_logger
from ..publish.hub import MODEL_FILES
from ..record.folders import checkpoints, step_of, torn_checkpoints
from ..record.seal import broken_files, read_seal, seal_checkpoint
from .changes import differences_since, refuse, refuse_another_run
from .checkpoints import answer_of_main, check_complete, tell_without_seal

logger = get_logger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class GoingOn:
    """Where a run goes on: at a checkpoint, at its start (None), or nowhere, because it is finished."""

    checkpoint: Path | None = None
    finished: bool = False


def go_on(output_dir: Path, identity: Mapping[str, Any], *, allow_changes: bool = False) -> GoingOn:
    """Returns where the run with this identity goes on; every process must call it, and gets the main one's answer.

    Args:
        output_dir: its folder.
        identity: see :func:`~simpo_trainer.train.identity.run_identity`.
        allow_changes: whether a run that differs in what changes the result may go on.

    Raises:
        SimPOError: the folder holds a run that differs in what changes the result.
    """

    def ask() -> str:
        found = _go_on(output_dir, identity, allow_changes)
        return "finished" if found.finished else str(found.checkpoint or "")

    answer = answer_of_main(ask)
    return GoingOn(finished=True) if answer == "finished" else GoingOn(Path(answer) if answer else None)


def seal_end(output_dir: Path, facts: Mapping[str, Any]) -> None:
    """Seal a finished run: its folder counts as finished while its model is as it was saved.

    Args:
        output_dir: the folder of the run.
        facts: what a seal holds of the run: see `RunTrainer.seal_facts`.
    """
    names = {path.name for pattern in MODEL_FILES for path in output_dir.glob(pattern)}
    seal_checkpoint(output_dir, {"finished": True, **facts}, sorted(names))


def tell_of_finished(output_dir: Path) -> None:
    """Log a warning where a run starts over in the folder of a finished one."""
    if _is_sealed_end(read_seal(output_dir)):
        logger.warning(
            f"{output_dir} holds a finished run. This one starts over, and overwrites its model when it ends; until "
            "then the model stays as it is."
        )


def _is_sealed_end(seal: Mapping[str, Any] | None) -> bool:
    return seal is not None and not seal.get("open", True) and bool(seal.get("finished"))


def _go_on(output_dir: Path, identity: Mapping[str, Any], allow_changes: bool) -> GoingOn:
    if _is_finished(output_dir, identity, allow_changes):
        return GoingOn(finished=True)
    for folder in reversed(checkpoints(output_dir)):
        if broken := broken_files(folder):
            logger.warning(f"{folder} is not whole ({broken[0]}), and the one before it is looked at.")
            continue
        refuse_another_run(folder, identity, allowed=allow_changes)
        try:
            check_complete(folder)
        except SimPOError as error:
            logger.warning(f"{error} The run starts over.")
            return GoingOn()
        tell_without_seal(folder)
        for torn in torn_checkpoints(output_dir):
            if step_of(torn) > step_of(folder):
                logger.warning(f"{torn} was not saved to the end, and is left out.")
        logger.info(f"Going on from {folder}.")
        return GoingOn(folder)
    for torn in torn_checkpoints(output_dir):
        logger.warning(f"{torn} was not saved to the end, and is left out: the run starts at its beginning.")
    return GoingOn()


def _is_finished(output_dir: Path, identity: Mapping[str, Any], allow_changes: bool) -> bool:
    if not _is_sealed_end(read_seal(output_dir)):
        return False
    changed = differences_since(output_dir, identity)
    # Only its checkpoints hold a state to go on from with other settings.
    there = bool(checkpoints(output_dir))
    refuse(f"{output_dir} holds a finished run that differs from this one", changed, allowed=allow_changes, allow=there)
    if changed:
        return False
    if broken := broken_files(output_dir):
        logger.warning(
            f"The model of the finished run in {output_dir} is not whole ({'; '.join(broken[:3])}); it is made again."
        )
        return False
    return True
