"""Ends a training in order after a step, an evaluation or a checkpoint at which a stop was requested."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stoppable(Protocol):
    """A trainer that can be stopped."""

    interrupted: bool
    is_in_train: bool

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step; the same on every process."""

    def agreed_signal(self) -> int:
        """Returns the signal that came to any process, 0 for none; every process must call it."""


class StopCallback(TrainerCallback):
    """Ends training where a stop was requested, with a checkpoint of that step.

    What asks for the stop may wait for seconds only: if it comes in an evaluation or while a checkpoint is saved, no
    further step is made, and no further checkpoint.
    """

    def __init__(self, trainer: Stoppable):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop_requested:
            self._stop(control)
            control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._in_the_middle(control) and self.trainer.agreed_signal():
            self._stop(control)
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._in_the_middle(control) and self.trainer.agreed_signal():
            self._stop(control)

    def _in_the_middle(self, control: TrainerControl) -> bool:
        """Returns whether the training would go on: behind its last step the trained model is saved instead."""
        return self.trainer.is_in_train and not control.should_training_stop

    def _stop(self, control: TrainerControl) -> None:
        self.trainer.interrupted = True
        control.should_training_stop = True
