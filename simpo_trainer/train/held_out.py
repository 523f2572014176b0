"""Scores the held-out pairs per token under the untrained and the trained model: one measure for every method."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..batches.batch import Batch, on_device
from ..loss.metrics import MetricSums
from ..model.modes import evaluating
from ..model.scoring import score_answers
from ..record.fingerprints import rows_fingerprint
from ..tokens.sets import count_pairs
from .randomness import randomness_kept

Figures = dict[str, float]


def score_pairs(trainer: Any, batches: DataLoader) -> Figures:
    """Returns the figures of pairs under the model as it is; every process must call it.

    Args:
        trainer: a trainer whose model was prepared for scoring.
        batches: this process's micro-batches of the pairs.

    Returns:
        Means over pairs: `accuracy`, the share of pairs whose chosen answer has the higher average log-probability, and
        `margin`, `chosen` and `rejected`, averages in nats per token.
    """
    sums, model = MetricSums(), trainer.model_wrapped
    with evaluating(model), torch.no_grad(), trainer.compute_loss_context_manager():
        for inputs in batches:
            batch = on_device(cast(Batch, inputs), trainer.args.device)
            averages = score_answers(model, batch).average
            sides, weight = (averages[batch["chosen"]], averages[batch["rejected"]]), batch["pair_weight"]
            # A mask, not a product with the weight: filler may be infinite.
            kept = {name: values[weight > 0] for name, values in _of_pairs(*sides).items()}
            sums.add({name: torch.stack([v.sum(), v.new_tensor(len(v))]) for name, v in kept.items()})
    return sums.reduce(trainer.accelerator)


def figures_of(averages: np.ndarray) -> Figures:
    """Returns the figures of pairs whose averages in nats per token are known, chosen and rejected, (pairs, 2)."""
    return {name: float(values.mean()) for name, values in _of_pairs(averages[:, 0], averages[:, 1]).items()}


def _of_pairs(chosen: Any, rejected: Any) -> dict[str, Any]:
    """Returns the figures of each pair, from arrays or tensors of shape (N,)."""
    margin = chosen - rejected
    return {"accuracy": 1.0 * (margin > 0), "margin": margin, "chosen": chosen, "rejected": rejected}


class HeldOutCallback(TrainerCallback):
    """Measures a run on its held-out pairs before its first step, if it evaluates during training, and at its end.

    What an evaluation of the trainer has measured already is noted and not measured again.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._noted: dict[str, int] = {}
        self._described: dict[str, dict[str, Any]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._noted = {}
        wanted = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
        for name, rows in self.trainer.held_out_sets().items():
            start = wanted and not state.global_step and not (args.eval_on_start and self.trainer.evaluates_per_token)
            self._record(name, rows, start=self._score(rows) if start else None)

    def note(self, name: str, rows: Any, figures: Figures) -> None:
        """Record figures that an evaluation has measured on the model as it is, if the rows are those of the run."""
        if rows is None or self.trainer.held_out_sets().get(name) is not rows:
            return
        step = self._noted[name] = self._step_of_model()
        measured = {"step": step, **figures}
        self._record(name, rows, **({"end": measured} if step else {"start": figures}))
        self.trainer.health.evaluation(name, step, figures)

    def measure_end(self) -> None:
        """Measure the sets that were not measured on the model as it is; every process must call it."""
        for name, rows in self.trainer.held_out_sets().items():
            if self._noted.get(name) != self._step_of_model():
                self.note(name, rows, self._score(rows))

    def _step_of_model(self) -> int:
        """Returns the step of the model as it is: after training, that of the best one if it was loaded."""
        state: TrainerState = self.trainer.state
        loaded = self.trainer.args.load_best_model_at_end and not self.trainer.is_in_train
        best = state.best_global_step if loaded and state.best_model_checkpoint else None
        return best or state.global_step

    def _score(self, rows: Any) -> Figures:
        with randomness_kept(self.trainer.args.device):
            return score_pairs(self.trainer, self.trainer.held_out_batches(rows))

    def _record(self, name: str, rows: Any, **figures: Mapping[str, float] | None) -> None:
        if name not in self._described:
            self._described[name] = {"tokens_sha256": rows_fingerprint(rows), "pairs": count_pairs(rows)}
        self.trainer.run_record.record_held_out(name, self._described[name], **figures)
