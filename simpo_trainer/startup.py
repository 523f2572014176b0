"""What the log says at the start of training: rows as the model sees them, batch arithmetic, the starting margin."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .data.token_rows import is_ranked
from .data.token_sets import columns_of, pair_counts
from .log import get_logger
from .modeling import describe

if TYPE_CHECKING:
    from .trainer import SimPOTrainer

logger = get_logger(__name__)


class StartReport(TrainerCallback):
    """Logs the size of the run and the measured starting margin beside the target margin."""

    def __init__(self, trainer: "SimPOTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        processes = trainer.accelerator.num_processes
        # Not the argument: `auto_find_batch_size` may have made it smaller.
        micro, accumulation = trainer._train_batch_size, args.gradient_accumulation_steps
        trainer.reset_window()
        unit, pairs = _rows_of(trainer.train_dataset, micro * processes * accumulation)
        logger.info(
            f"Model: {describe(trainer.model_wrapped)}.\n"
            f"Global batch: {micro * processes * accumulation} {unit} ({micro} per device x {processes} process"
            f"{'es' if processes > 1 else ''} x {accumulation} accumulation){pairs}. Optimiser steps: {state.max_steps}."
        )
        wanted = trainer.args.global_batch_size
        if wanted and wanted != micro * processes * accumulation:
            logger.warning(
                f"The global batch is {micro * processes * accumulation} {unit}, the recipe's is {wanted}: its other "
                "numbers were chosen for that. Leave gradient_accumulation_steps out to have it derived."
            )
        if state.global_step:
            logger.info(f"Resuming after step {state.global_step}.")
            return
        start = trainer.measure_start()
        unit = "nats per token" if trainer.args.average_log_prob else "nats"
        logger.info(
            f"Target margin: {trainer.args.gamma_beta_ratio:g} {unit} (beta {trainer.args.beta:g}, gamma "
            f"{trainer.args.beta * trainer.args.gamma_beta_ratio:g}). Starting margin: {start['logps/margins']:+.3f} "
            f"(chosen {start['logps/chosen']:.3f}, rejected {start['logps/rejected']:.3f}, accuracy "
            f"{start['rewards/accuracies']:.2f})."
        )


def _rows_of(dataset: Any, batch: int) -> tuple[str, str]:
    """What the rows of a training set are called, and of ranked answers how many pairs a global batch has."""
    if not is_ranked(columns_of(dataset)):
        return "pairs", ""
    counts = pair_counts(dataset) if hasattr(dataset, "__len__") else None
    return "prompts", f", with {batch * sum(counts) / len(counts):.0f} pairs on average" if counts else ""
