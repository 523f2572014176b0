"""The processes of a run, on one machine or several, must make the same run and see the same folder."""

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ..environment import library_versions
from ..errors import SimPOError
from ..log import get_logger
from ..record.differences import differences, told_beside
from ..record.folders import STATE
from .lock import LOCK

logger = get_logger(__name__)

# Every engine trains the weights of rank 0, and some load those on that rank alone.
_OF_RANK_0 = ("the base model",)


def check_same_run(identity: Mapping[str, Any], output_dir: Path, processes: int) -> None:
    """Refuse processes that are about to make different runs: their gradients would be mixed. All must call it.

    A warning tells of other versions of libraries, and of an output folder that is not the same one.

    Args:
        identity: see :func:`~simpo_trainer.train.identity.run_identity`; its weights are not compared.
        output_dir: of the run, whose lock rank 0 holds.
        processes: of the run.

    Raises:
        SimPOError: a process has other settings, another tokenizer or other pairs than rank 0; on every process.
    """
    own = {
        "host": socket.gethostname(),
        "run": {name: value for name, value in identity.items() if name not in _OF_RANK_0},
        "versions": library_versions(),
        "sees the folder": (output_dir / LOCK).exists(),
    }
    everyone = _gathered(own, processes)
    if found := _first(everyone, lambda one: differences(everyone[0]["run"], one["run"])):
        raise SimPOError(
            f"{_named(found[0], everyone)} is about to make another run than rank 0: {told_beside(found[1])}. Give all "
            "machines the same recipe, the same words and the same data."
        )
    if found := _first(everyone, lambda one: differences(everyone[0]["versions"], one["versions"])):
        logger.warning(f"{_named(found[0], everyone)} has other versions than rank 0: {told_beside(found[1])}.")
    blind = [rank for rank, one in enumerate(everyone) if not one["sees the folder"]]
    if everyone[0]["sees the folder"] and blind:
        logger.warning(
            f"output_dir {output_dir} is another folder on {_named(blind[0], everyone)} than on rank 0, which saves "
            "the model. To go on from a checkpoint all must see it: set output_dir to a folder that all machines share."
        )


def check_same_folder(checkpoint: Path, processes: int) -> None:
    """Refuse to go on from a checkpoint that a process does not see. All must call it.

    Raises:
        SimPOError: names the first such process; on every process.
    """
    everyone = _gathered({"host": socket.gethostname(), "sees": (checkpoint / STATE).is_file()}, processes)
    if found := _first(everyone, lambda one: not one["sees"]):
        raise SimPOError(
            f"{_named(found[0], everyone)} does not see the checkpoint {checkpoint}, from which rank 0 goes on. Set "
            "output_dir to a folder that all machines share, or copy what is in the checkpoint on each machine to all "
            "others; --resume_from_checkpoint false starts over."
        )


def _gathered(own: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    return gather_object([own]) if processes > 1 else [own]


def _first(everyone: Sequence[Mapping[str, Any]], problem: Callable[[Any], Any]) -> tuple[int, Any] | None:
    """Returns the first rank that has the problem, and the problem."""
    return next(((rank, found) for rank, one in enumerate(everyone) if (found := problem(one))), None)


def _named(rank: int, everyone: Sequence[Mapping[str, Any]]) -> str:
    return f"Rank {rank} on {everyone[rank]['host']}"
