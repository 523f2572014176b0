"""The state that goes on with a run: that of its callbacks, and the logging window that was open at the checkpoint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..record.folders import STATE


def restore_states(callbacks: Iterable[TrainerCallback], checkpoint: Path) -> None:
    """Give the callbacks of a run the state that they had when a checkpoint was saved.

    A callback takes part by being a transformers `ExportableState` too: what its `state()` returns under "attributes"
    is saved with each checkpoint and set on it here, before `on_train_begin`. Callbacks are found by the name of their
    class, several of one class by their order; the objects stay, so whoever holds one goes on with it.

    Args:
        callbacks: those of the trainer.
        checkpoint: the folder that training goes on from.
    """
    takers = [callback for callback in callbacks if isinstance(callback, ExportableState)]
    for name, saved in TrainerState.load_from_json(str(checkpoint / STATE)).stateful_callbacks.items():
        alike = [callback for callback in takers if type(callback).__name__ == name]
        # Of several callbacks of a class, transformers adds their states to one list at every checkpoint.
        states = saved[-len(alike) :] if isinstance(saved, list) else [saved]
        for callback, state in zip(alike, states, strict=False):
            for attribute, value in state.get("attributes", {}).items():
                setattr(callback, attribute, value)


def make_room_for_states(state: TrainerState, callbacks: Iterable[TrainerCallback]) -> None:
    """Let callbacks save their state that the run had not when the checkpoint was saved that it goes on from.

    transformers fails at the next checkpoint otherwise, also where it is one of an earlier version of this package.

    Args:
        state: the one from the checkpoint.
        callbacks: those of the trainer.
    """
    found = cast(dict[str, Any], state.stateful_callbacks)
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, ExportableState)]
    for name in names:
        saved = found.setdefault(name, [] if names.count(name) > 1 else {})
        if names.count(name) > 1 and not isinstance(saved, list):
            found[name] = [saved]


class LoggingWindow(TrainerCallback, ExportableState):
    """Goes on with the logging window that was open at the checkpoint: its first line is of all its steps.

    The loss of the window is in private attributes of `Trainer`, which are touched here alone.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        # For each process its part of the window, since the last log.
        self.opened: list[dict[str, Any]] | None = None

    def collect(self) -> None:
        """Note the window of every process for :meth:`state`; every process must call it."""
        trainer = self.trainer
        # An older transformers keeps the loss of the window in a local variable.
        loss = getattr(trainer, "_tr_loss", None)
        own = {
            "loss": None if loss is None else loss.item(),
            "since": getattr(trainer, "_globalstep_last_logged", trainer.state.global_step),
            "sums": trainer.window_sums(),
        }
        self.opened = gather_object([own])

    def state(self) -> dict[str, Any]:
        """Returns the windows of all processes, as transformers wants the state of a callback."""
        return {"args": {}, "attributes": {"opened": self.opened}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        make_room_for_states(state, self.trainer.callback_handler.callbacks)
        opened, self.opened = self.opened, None
        if not opened or not state.global_step or any(part["loss"] is None for part in opened):
            return
        trainer, rank = self.trainer, self.trainer.accelerator.process_index
        if len(opened) == trainer.accelerator.num_processes:
            loss, sums = opened[rank]["loss"], [opened[rank]["sums"]]
        else:  # the log shows the mean loss of the processes, and the sums of them all
            loss = sum(part["loss"] for part in opened) / len(opened)
            sums = [part["sums"] for part in opened] if rank == 0 else []
        trainer._tr_loss = torch.tensor(loss, device=args.device)
        trainer._globalstep_last_logged = opened[0]["since"]
        # The mean loss of this training is one of its own steps.
        trainer._total_loss_scalar = -loss
        for part in sums:
            trainer.add_window_sums(part)
