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
from .checkpoints import answer_of_main, check_complete, tell_without_seal
from .identity import differences

logger = get_logger(__name__)

AUTO = "auto"
_START_OVER = "start over with --resume_from_checkpoint false"


@dataclass(frozen=True)
class GoingOn:
    """Where a run goes on: at a checkpoint, at its start (None), or nowhere, because it is finished."""

    checkpoint: Path | None = None
    finished: bool = False


def go_on(output_dir: Path, identity: Mapping[str, Any]) -> GoingOn:
    """Returns where the run with this identity goes on; every process must call it, and gets the main one's answer.

    Args:
        output_dir: its folder.
        identity: see :func:`~simpo_trainer.train.identity.run_identity`.

    Raises:
        SimPOError: the folder holds a run that differs in what changes the result.
    """

    def ask() -> str:
        found = _go_on(output_dir, identity)
        return "finished" if found.finished else str(found.checkpoint or "")

    answer = answer_of_main(ask)
    return GoingOn(finished=True) if answer == "finished" else GoingOn(Path(answer) if answer else None)


def seal_end(output_dir: Path, identity: Mapping[str, Any], step: int) -> None:
    """Seal a finished run: its folder counts as finished while its model is as it was saved.

    Args:
        output_dir: the folder of the run.
        identity: that of the run.
        step: the number of its optimiser steps.
    """
    names = {path.name for pattern in MODEL_FILES for path in output_dir.glob(pattern)}
    seal_checkpoint(output_dir, {"finished": True, "step": step, "run": identity}, sorted(names))


def tell_of_finished(output_dir: Path) -> None:
    """Log a warning where a run starts over in the folder of a finished one."""
    if _is_sealed_end(read_seal(output_dir)):
        logger.warning(
            f"{output_dir} holds a finished run. This one starts over, and overwrites its model when it ends; until "
            "then the model stays as it is."
        )


def _is_sealed_end(seal: Mapping[str, Any] | None) -> bool:
    return seal is not None and not seal.get("open", True) and bool(seal.get("finished"))


def _go_on(output_dir: Path, identity: Mapping[str, Any]) -> GoingOn:
    if _is_finished(output_dir, identity):
        return GoingOn(finished=True)
    for folder in reversed(checkpoints(output_dir)):
        if broken := broken_files(folder):
            logger.warning(f"{folder} is not whole ({broken[0]}), and the one before it is looked at.")
            continue
        _refuse_another_run(f"{folder} is a checkpoint of a run that differs from this one", folder, identity)
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


def _is_finished(output_dir: Path, identity: Mapping[str, Any]) -> bool:
    if not _is_sealed_end(read_seal(output_dir)):
        return False
    _refuse_another_run(f"{output_dir} holds a finished run that differs from this one", output_dir, identity)
    if broken := broken_files(output_dir):
        logger.warning(
            f"The model of the finished run in {output_dir} is not whole ({'; '.join(broken[:3])}); it is made again."
        )
        return False
    return True


def _refuse_another_run(found: str, folder: Path, identity: Mapping[str, Any]) -> None:
    seal = read_seal(folder)
    if changed := differences((seal or {}).get("run") or {}, identity):
        raise SimPOError(
            f"{found}: {'; '.join(changed)}. Set that back to go on; or set output_dir to another folder; or "
            f"{_START_OVER}: its checkpoints are kept as _earlier-*, and its model is overwritten at the end."
        )
