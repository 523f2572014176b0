"""Which optimiser steps are logged: the first, the last, and at least ten in all, however short the run is."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

# Log lines that a run has at least, if it has as many steps.
_LINES = 10


class LoggedSteps(TrainerCallback):
    """Shortens `logging_steps` for a short run, and logs its first and its last step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.logging_strategy == IntervalStrategy.STEPS:
            state.logging_steps = max(1, min(state.logging_steps, state.max_steps // _LINES))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.logging_strategy != IntervalStrategy.NO and state.global_step in (1, state.max_steps):
            control.should_log = True
