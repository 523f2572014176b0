"""Ends a training in order after a step at which a stop was requested."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stoppable(Protocol):
    """A trainer that can be stopped."""

    interrupted: bool

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step; the same on every process."""


class StopCallback(TrainerCallback):
    """Ends training after a step at which a stop was requested, with a checkpoint."""

    def __init__(self, trainer: Stoppable):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop_requested:
            self.trainer.interrupted = True
            control.should_save = True
            control.should_training_stop = True
