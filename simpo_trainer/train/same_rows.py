"""Measures the model on the same rows before the first step and after the last: how far training moved it."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..record.fingerprints import rows_fingerprint

if TYPE_CHECKING:
    from .run_trainer import RunTrainer

# Enough for a mean, few enough to cost next to nothing.
ROWS = 64


class SameRowsCallback(TrainerCallback):
    """Measures a run on one fixed slice of its training set, at its start and at its end, for the record of the run.

    `start` is what the untrained model was measured to do; None where the run goes on from a checkpoint, or where the
    method has no such rows. The weights may lie scattered over the processes, so all of them measure.
    """

    def __init__(self, trainer: "RunTrainer"):
        self.trainer = trainer
        self.start: dict[str, float] | None = None
        self._rows: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.start, self._rows = None, self.trainer.rows_to_measure(ROWS)
        if self._rows is None:
            return
        if not state.global_step:
            self.start = self.trainer.measure(self._rows)
        rows = {"rows": len(self._rows), "tokens_sha256": rows_fingerprint(self._rows)}
        self.trainer.run_record.record_start(rows, self.start)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._rows is None or self.trainer.interrupted:
            return
        best = state.best_global_step if args.load_best_model_at_end and state.best_model_checkpoint else None
        self.trainer.run_record.record_end({"step": best or state.global_step, **self.trainer.measure(self._rows)})
