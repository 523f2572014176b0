"""Log lines at the start of training: size of model and batch, number of steps, and the starting margin."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..log import get_logger
from ..model.load import describe
from ..record.methods import METHODS
from ..record.reader import PER_TOKEN
from ..tokens.rows import is_ranked
from ..tokens.sets import columns_of, pair_counts
from .rate import ADAPTER_FACTOR, has_adapter, low_rate

logger = get_logger(__name__)


class StartReport(TrainerCallback):
    """Logs the size of the run and the measured starting margin beside the target margin."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        say_size(trainer, trainer.args.global_batch_size)
        say_unit(trainer)
        if state.global_step:
            logger.info(f"Resuming after step {state.global_step}.")
            return
        start = trainer.same_rows.start
        if start is None:
            return
        objective = trainer.args.objective
        target = ""
        if objective.target_margin is not None:
            beta, ratio = objective.reward_scale, objective.target_margin
            target = f"Target margin: {ratio:g} {objective.unit} (beta {beta:g}, gamma {beta * ratio:g}). "
        logger.info(
            f"{target}Starting margin: {start['logps/margins']:+.3f} "
            f"(chosen {start['logps/chosen']:.3f}, rejected {start['logps/rejected']:.3f}, accuracy "
            f"{start['rewards/accuracies']:.2f})."
        )


def say_size(trainer: Any, wanted: int | None, unit: str | None = None) -> None:
    """Log the size of the model and of a global batch, and warn where the recipe asks for another one.

    Args:
        trainer: any trainer that is about to train.
        wanted: the recipe's global batch.
        unit: what its rows are called; unset means what their columns tell.
    """
    processes = trainer.accelerator.num_processes
    micro, accumulation = trainer.args.train_batch_size, trainer.args.gradient_accumulation_steps
    batch = micro * processes * accumulation
    unit, pairs = (unit, "") if unit else _rows_of(trainer.train_dataset, batch)
    logger.info(
        f"Model: {describe(trainer.model_wrapped)}.\n"
        f"Global batch: {batch} {unit} ({micro} per device x {processes} process{'es' if processes > 1 else ''} x "
        f"{accumulation} accumulation){pairs}. Optimiser steps: {trainer.state.max_steps}."
    )
    adapts = has_adapter(trainer.model)
    warning = low_rate(trainer.args.learning_rate) if adapts else None
    if warning := warning or too_few_steps(trainer.args, trainer.state.max_steps, adapts=adapts):
        logger.warning(warning)
    if wanted and wanted != batch:
        logger.warning(
            f"The global batch is {batch} {unit}, the recipe's is {wanted}: its other numbers were chosen for that. "
            "Leave gradient_accumulation_steps out to have it derived."
        )


def say_unit(trainer: Any) -> None:
    """Log the unit of the log-probabilities in the lines of a run whose numbers are not per token, as SimPO's are."""
    if METHODS[trainer.method].won and trainer.log_prob_unit != PER_TOKEN:
        logger.info(
            "In the lines below, margin, chosen and rejected are sums over the tokens of an answer, in nats, not "
            "averages per token."
        )


# The sum over steps of the learning rate below which a model has hardly moved: a seventh of what the smallest of the
# paper's runs has, 3e-7 for 478 steps. Adam moves each weight by about the learning rate in a step.
_REACH = 2e-5


def too_few_steps(args: TrainingArguments, steps: int, *, adapts: bool = False) -> str | None:
    """Returns a warning where the steps are too few, or too small, for a trained model to differ from its start.

    Args:
        args: their learning rate and optimiser are read.
        steps: optimiser steps of the run.
        adapts: whether an adapter trains, which needs larger steps.
    """
    if args.learning_rate <= 0 or "adam" not in str(getattr(args.optim, "value", args.optim)):
        return None
    reach = _REACH * (ADAPTER_FACTOR if adapts else 1)
    needed = math.ceil(round(reach / args.learning_rate, 6))
    if steps >= needed:
        return None
    return (
        f"{steps} optimiser steps at a learning rate of {args.learning_rate:g} hardly move the model; the paper's runs "
        f"have about 480. Make at least {needed}: lower global_batch_size, raise "
        "num_train_epochs, or use more pairs. Or raise the learning rate."
    )


def _rows_of(dataset: Any, batch: int) -> tuple[str, str]:
    """Returns the name of a training set's rows, and for ranked answers the number of pairs in a global batch."""
    if not is_ranked(columns_of(dataset)):
        return "pairs", ""
    counts = pair_counts(dataset) if hasattr(dataset, "__len__") else None
    return "prompts", f", with {batch * sum(counts) / len(counts):.0f} pairs on average" if counts else ""
