"""The room on the disk that the checkpoints and the model of a run need, and whether it is there.

Before a first checkpoint is written its size is reckoned from the weights, and not too high: a run that could be saved
must not be refused. Later checkpoints are as large as the ones before.
"""

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..errors import SimPOError
from ..log import get_logger
from ..record.folders import checkpoints
from ..record.seal import read_seal
from .checkpoints import rotate_checkpoints

logger = get_logger(__name__)

# Tokenizer, configurations, states of random numbers, log: about what is beside the weights in a small checkpoint.
SMALL_FILES = 1 << 20
WEIGHTS = ("*model*.safetensors", "*/adapter_model.safetensors")


def agreed(problem: str) -> str:
    """Returns the first problem that any process has, "" for none; every process must call it."""
    if PartialState().num_processes == 1:
        return problem
    return next(filter(None, gather_object([problem])), "")


def free_bytes(folder: Path) -> int | None:
    """Returns the free bytes on the disk of a folder that may not be there yet; None where the system cannot tell."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return None
    return usage.free if usage.total > 0 else None


def shown(count: int) -> str:
    """Returns a number of bytes as text."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


class Room:
    """The room that one run needs.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._last: int | None = None

    def forget(self) -> None:
        """Begin a training: only a checkpoint with all that the next ones hold tells their size."""
        trainer, resumed = self.trainer, self.trainer.resumed_from
        seal = read_seal(resumed) if resumed and not trainer.args.save_only_model else None
        like = seal is not None and seal.get("processes") == trainer.accelerator.num_processes
        self._last = _sealed_bytes(resumed) if like else None

    def learn(self, folder: Path) -> None:
        """Take the size of a checkpoint that was just sealed for that of the next."""
        self._last = _sealed_bytes(folder)

    def of_model(self, folder: Path | None = None) -> int:
        """Returns the bytes that the trained model needs in a folder, less those that it overwrites there."""
        size = _weights_bytes(self.trainer) + SMALL_FILES
        files = [file for pattern in WEIGHTS for file in folder.glob(pattern)] if folder else []
        return max(0, size - sum(file.stat().st_size for file in files))

    def of_checkpoint(self) -> int:
        """Returns the bytes of one checkpoint on the disk of this machine."""
        trainer = self.trainer
        size = self._last
        if size is None:
            size = _weights_bytes(trainer) + SMALL_FILES
            size += 0 if trainer.args.save_only_model else _moments_bytes(trainer)
        # Each machine of a split model may have a disk of its own, with its part of the checkpoint on it.
        return size // _machines(trainer) if is_split(trainer) else size

    def start_problem(self) -> str:
        """Returns why the run cannot be saved, "" if it can; a warning says if not all of its checkpoints will fit."""
        args, state = self.trainer.args, self.trainer.state
        folder = Path(str(args.output_dir))
        free, made = free_bytes(folder), _to_come(args, state)
        model, checkpoint = self.of_model(folder), self.of_checkpoint() if made else 0
        if free is None:
            return ""
        if free < checkpoint + model:
            parts = f"{shown(checkpoint)} for a checkpoint, and " if made else ""
            hint = ""
            if made and not args.save_only_model and _moments_bytes(self.trainer):
                hint = ", or save_only_model: true for checkpoints without the optimiser, from which no run can go on"
            return (
                f"There is too little room for this run: {folder} has {shown(free)} free, and needed are "
                f"{shown(checkpoint + model)} ({parts}{shown(model)} for the trained model). Free room there, or set "
                f"output_dir to a folder on another disk{hint}."
            )
        at_once = _new_at_once(self.trainer, made)
        if free < at_once * checkpoint + model:
            fit, limit = (free - model) // checkpoint, args.save_total_limit
            logger.warning(
                f"{folder} has {shown(free)} free, which is room for the trained model ({shown(model)}) and {fit} of "
                f"the {at_once} checkpoints ({shown(checkpoint)} each) that will be there at a time. The run ends with "
                f"an error at the first one without room. Free room, or lower save_total_limit (now {limit or 'all'}): "
                "one more than that is there while the next is written."
            )
        return ""

    def checkpoint_problem(self, output_dir: Path) -> str:
        """Returns why a checkpoint has no room, "" if it has. Older ones that its seal would remove may go before.

        One whole checkpoint stays in any case: it is what the run goes on from if this one fails.
        """
        args, needed = self.trainer.args, self.of_checkpoint()
        if (free := free_bytes(output_dir)) is None or free >= needed:
            return ""
        limit = args.save_total_limit or 0
        rotate_checkpoints(output_dir, limit - 1 if limit > 1 else None, self.trainer.state.best_model_checkpoint)
        free = free_bytes(output_dir)
        return too_little(needed, free) if free is not None and free < needed else ""


def too_little(needed: int, free: int | None) -> str:
    """Returns the two numbers of a save without room, as part of a sentence."""
    return f"needed are {shown(needed)}, and {'an unknown number of bytes' if free is None else shown(free)} are free"


def is_split(trainer: Any) -> bool:
    """Returns whether each process holds, and may write, only its part of the model."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


class RoomCallback(TrainerCallback):
    """Refuses a run that could not be saved, before its first step; every process gets the error.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        room: Room = self.trainer.room
        room.forget()
        problem = ""
        if args.should_save:
            problem = room.start_problem() or _rescue_problem(rescue_dir(self.trainer))
        if problem := agreed(problem):
            raise SimPOError(problem)


def rescue_dir(trainer: Any) -> Path | None:
    """Returns the folder for a trained model that has no room in `output_dir`, if one is set."""
    found = getattr(trainer, "shared", trainer.args).rescue_dir
    return Path(found).expanduser() if found else None


def _rescue_problem(folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"rescue_dir {folder} cannot be written: {error.strerror}. Set rescue_dir to a folder of yours."


def _sealed_bytes(folder: Path) -> int:
    seal = read_seal(folder) or {}
    return sum(file["bytes"] for file in seal.get("files", {}).values())


def _weights_bytes(trainer: Any) -> int:
    """Returns the bytes of the weights that are written: of an adapter, those that it trains."""
    args, adapter = trainer.args, isinstance(trainer.model, PeftModel)
    halved = trainer.is_deepspeed_enabled and (args.bf16 or args.fp16)  # gathered as the engine holds them
    return sum(
        _numel(weight) * (2 if halved else weight.element_size())
        for weight in trainer.model.parameters()
        if weight.requires_grad or not adapter
    )


def _moments_bytes(trainer: Any) -> int:
    """Returns the bytes of Adam's two moments; 0 for an optimiser whose state is not known before it is there."""
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if not isinstance(optimizer, torch.optim.Adam):
        return 0
    trained = (weight for weight in trainer.model.parameters() if weight.requires_grad)
    return sum(2 * _numel(weight) * weight.element_size() for weight in trained)


def _numel(weight: torch.nn.Parameter) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))  # ZeRO-3 leaves an empty tensor


def _machines(trainer: Any) -> int:
    processes = trainer.accelerator.num_processes
    return max(1, processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def _to_come(args: TrainingArguments, state: TrainerState) -> int:
    """Returns how many checkpoints the rest of a run asks for; of the best ones, whose number nobody knows, two."""
    if state.global_step >= state.max_steps or args.save_strategy == SaveStrategy.NO:
        return 0
    if args.save_strategy == SaveStrategy.STEPS:
        every = max(1, int(state.save_steps))
        # transformers saves at the last step too.
        return math.ceil(state.max_steps / every) - state.global_step // every
    if args.save_strategy == SaveStrategy.EPOCH:
        return max(1, math.ceil(state.num_train_epochs - (state.epoch or 0)))
    return 2


def _new_at_once(trainer: Any, made: int) -> int:
    """Returns how many checkpoints will be written before older ones go: the oldest goes when the new one is sealed."""
    limit = trainer.args.save_total_limit
    if not limit or limit < 0 or not made:
        return made
    kept = max(limit, 2 if trainer.args.load_best_model_at_end else 1)
    folder, resumed = Path(str(trainer.args.output_dir)), trainer.resumed_from
    own = checkpoints(folder) if resumed and resumed.resolve().parent == folder.resolve() else []
    return min(made, max(1, kept + 1 - len(own)))
