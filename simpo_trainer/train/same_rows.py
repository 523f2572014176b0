"""Measures the model on the same rows before the first step and after the last: how far training moved it."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..record.fingerprints import rows_fingerprint
from ..record.manifest import ManifestCallback
from .randomness import randomness_kept

# Enough for a mean, few enough to cost next to nothing.
ROWS = 64


class Measured(Protocol):
    """A trainer that can be measured on rows of its training set."""

    interrupted: bool
    run_record: ManifestCallback

    def rows_to_measure(self, count: int) -> Any:
        """At most `count` rows of the training set, the same on every call; None if there is nothing to measure."""

    def measure(self, rows: Any) -> dict[str, float]:
        """Metrics of the model on such rows, without a graph; every process must call it."""


class SameRowsCallback(TrainerCallback):
    """Measures a run on one fixed slice of its training set, at its start and at its end, for the record of the run.

    `start` is what the untrained model was measured to do; None where the run goes on from a checkpoint, or where the
    method has no such rows. The weights may lie scattered over the processes, so all of them measure.
    """

    def __init__(self, trainer: Measured):
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
            with randomness_kept(args.device):
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
