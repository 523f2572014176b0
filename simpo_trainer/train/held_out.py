"""Scores the held-out pairs per token under the untrained and the trained model: one measure for every method."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..batches.batch import Batch, on_device
from ..loss.metrics import PairRecords
from ..model.modes import evaluating
from ..model.scoring import score_answers
from ..record.fingerprints import rows_fingerprint
from ..record.full_disk import ReportWriter
from ..record.pair_scores import SCORES_FILE, PairScores, save_scores
from ..tokens.sets import count_pairs, pair_sources
from .randomness import randomness_kept

Figures = dict[str, float]


def score_pairs(trainer: Any, batches: DataLoader) -> PairScores:
    """Returns the scores of pairs under the model as it is; every process must call it.

    Args:
        trainer: a trainer whose model was prepared for scoring.
        batches: this process's micro-batches of the pairs.

    """
    records, model = PairRecords(), trainer.model_wrapped
    with evaluating(model), torch.no_grad(), trainer.compute_loss_context_manager():
        for inputs in batches:
            batch = on_device(cast(Batch, inputs), trainer.args.device)
            answers = score_answers(model, batch)
            sides = [answers.select(batch[side]) for side in ("chosen", "rejected")]
            averages, lengths = (
                torch.stack([getattr(side, name) for side in sides], -1) for name in ("average", "length")
            )
            records.add(batch, averages, lengths)
    return PairScores(*records.gather(trainer.accelerator)[:2])


def figures_of(scores: PairScores) -> Figures:
    """Returns the figures of pairs.

    Returns:
        Means over pairs: `accuracy`, the share of pairs whose chosen answer has the higher average log-probability, and
        `margin`, `chosen` and `rejected`, averages in nats per token.
    """
    chosen, rejected = scores.averages[:, 0], scores.averages[:, 1]
    each = {"accuracy": chosen > rejected, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
    return {name: float(values.mean()) for name, values in each.items()}


class HeldOutCallback(TrainerCallback):
    """Measures a run on its held-out pairs before its first step, if it evaluates during training, and at its end.

    What an evaluation of the trainer has measured already is noted and not measured again.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._noted: dict[str, int] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._reports = ReportWriter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._noted = {}
        if state.is_world_process_zero and not state.global_step:
            (Path(str(args.output_dir)) / SCORES_FILE).unlink(missing_ok=True)  # of an earlier run in the folder
        wanted = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
        for name, rows in self.trainer.held_out_sets().items():
            start = wanted and not state.global_step and not (args.eval_on_start and self.trainer.evaluates_per_token)
            scores = self._score(rows) if start else None
            self._record(name, rows, start=figures_of(scores) if scores else None)
            if scores:
                self._save(name, rows, scores, 0)

    def note(self, name: str, rows: Any, scores: PairScores) -> None:
        """Record what an evaluation has measured on the model as it is, if the rows are those of the run."""
        if rows is None or self.trainer.held_out_sets().get(name) is not rows:
            return
        step = self._noted[name] = self._step_of_model()
        figures = figures_of(scores)
        measured = {"step": step, **figures}
        self._record(name, rows, **({"end": measured} if step else {"start": figures}))
        self._save(name, rows, scores, step)
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

    def _score(self, rows: Any) -> PairScores:
        with randomness_kept(self.trainer.args.device):
            return score_pairs(self.trainer, self.trainer.held_out_batches(rows))

    def _save(self, name: str, rows: Any, scores: PairScores, step: int) -> None:
        if self.trainer.is_world_process_zero():
            scores = replace(scores, sources=pair_sources(rows))
            folder, fingerprint = Path(str(self.trainer.args.output_dir)), self._described[name]["tokens_sha256"]
            self._reports.write(SCORES_FILE, lambda: save_scores(folder, name, fingerprint, scores, step))

    def _record(self, name: str, rows: Any, **figures: Mapping[str, float] | None) -> None:
        if name not in self._described:
            self._described[name] = {"tokens_sha256": rows_fingerprint(rows), "pairs": count_pairs(rows)}
        self.trainer.run_record.record_held_out(name, self._described[name], **figures)
