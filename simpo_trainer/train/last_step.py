"""A run that goes on from its last step trains nothing more.

That step may be in the middle of an epoch, and before the last one where a callback has ended the training.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..record.folders import step_of
from ..record.seal import read_seal
from .checkpoints import answer_of_main


class LastStep(TrainerCallback):
    """Leaves no epoch to a training that goes on from its last step.

    transformers looks for the last step behind each step alone. Between two epochs there is none left; within one it
    would make a step too many.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._epochs: int | None = None

    def left(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the result of `Trainer.set_initial_training_values` with the epochs that there are to train."""
        epochs, steps_of_epoch, *_, max_steps = values
        checkpoint, self._epochs = self.trainer.resumed_from, None
        if checkpoint is None or (step_of(checkpoint) < max_steps and not _was_ended(checkpoint)):
            return values
        self._epochs = epochs
        return (min(epochs, step_of(checkpoint) // steps_of_epoch), *values[1:])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._epochs is not None:
            state.num_train_epochs = self._epochs  # the record tells of the whole run


def _was_ended(checkpoint: Path) -> bool:
    """Returns whether a callback had ended the training when a checkpoint was saved; all processes must call it."""
    return bool(answer_of_main(lambda: "ended" if (read_seal(checkpoint) or {}).get("ended") else ""))
