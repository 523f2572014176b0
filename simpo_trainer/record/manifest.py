"""`run_manifest.json`: the description of a run, so that its numbers can be explained and reproduced.

The file is published with the model, so it holds names instead of paths, and neither users, hosts nor secrets.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .facts import RunFacts
from .folders import MANIFEST
from .full_disk import ReportWriter
from .peak_memory import forget_peak, peak_memory
from .seal import SEAL


class Recorded(Protocol):
    """The attributes and methods of a trainer that the record of its run uses."""

    args: TrainingArguments
    state: TrainerState
    accelerator: Accelerator
    interrupted: bool
    resumed_from: Path | None
    changes: list[dict[str, Any]]

    def facts(self) -> RunFacts:
        """Returns the facts of the run."""

    def is_world_process_zero(self) -> bool:
        """Returns whether this process writes the record."""


class ManifestCallback(TrainerCallback):
    """Writes the manifest when training starts, so that a killed run has one, and adds results as they come."""

    def __init__(self, trainer: Recorded):
        self.trainer = trainer
        self.manifest: dict[str, Any] = {}
        self._earlier: dict[str, Any] = {}
        self._reports = ReportWriter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        forget_peak(self.trainer.accelerator.device)
        if not self.trainer.is_world_process_zero():
            return
        # An earlier run in this folder counts as finished until now.
        (Path(str(args.output_dir)) / SEAL).unlink(missing_ok=True)
        self._earlier = self._first_part() if state.global_step else {}
        begun = {"status": "running", "started": _now(), "finished": None, "resumed_from_step": state.global_step}
        self.manifest = {
            "manifest_version": 2,
            **begun,
            "changes": self.trainer.changes,
            "peak_memory": None,
            **self.trainer.facts().public(),
            "measured_rows": None,
            "start": None,
            "end": None,
            "held_out": {},
            "findings": [],
        }
        self._write()

    def record_start(self, rows: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Add the metrics of the untrained model on some rows.

        Args:
            rows: a description of the rows.
            metrics: the metrics; None if the run resumes from a checkpoint. Then those of its first part are kept, if
                they were measured on the same rows.
        """
        if not self.manifest:
            return
        measured = {"measured_rows": rows, "log_prob_unit": self.manifest["log_prob_unit"]}
        if metrics is None and all(self._earlier.get(name) == value for name, value in measured.items()):
            metrics = self._earlier.get("start")
        self._write(measured_rows=rows, start=metrics)

    def record_end(self, metrics: dict[str, float]) -> None:
        """Add the metrics of the trained model on the same rows, and its step."""
        if self.manifest:
            self._write(end=metrics)

    def record_held_out(
        self,
        name: str,
        pairs: dict[str, Any],
        *,
        start: dict[str, Any] | None = None,
        end: dict[str, Any] | None = None,
    ) -> None:
        """Add what was measured on a set of held-out pairs; what is None stays as it was.

        Args:
            name: the name of the set, as in `data.sets`.
            pairs: a description of the pairs.
            start, end: figures of the untrained model, and of a later one with its step. A run that resumes keeps the
                start of its first part, if that was measured on the same pairs.
        """
        if not self.manifest:
            return
        known = self.manifest["held_out"].get(name)
        if known is None:
            known = (self._earlier.get("held_out") or {}).get(name) or {}
            kept = known.get("start") if all(known.get(key) == value for key, value in pairs.items()) else None
            known = {**pairs, "start": kept, "end": None}
        news = {key: value for key, value in (("start", start), ("end", end)) if value is not None}
        self._write(held_out={**self.manifest["held_out"], name: {**known, **news}})

    def record_findings(self, findings: list[dict[str, Any]]) -> None:
        """Write what the health monitor has found so far."""
        if self.manifest:
            self._write(findings=findings)

    def _first_part(self) -> dict[str, Any]:
        """Returns the manifest of the run that is resumed; empty if the checkpoint is not in this output folder."""
        folder, checkpoint = Path(str(self.trainer.args.output_dir)), self.trainer.resumed_from
        # A checkpoint that was set aside (its name starts with "_") belongs to an earlier run in the folder.
        if checkpoint is None or checkpoint.resolve().parent != folder.resolve() or checkpoint.name[0] == "_":
            return {}
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no manifest, or an incomplete one
            return {}
        return found if isinstance(found, dict) else {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        peak = peak_memory(self.trainer.accelerator)
        if self.manifest:
            status = "interrupted" if self.trainer.interrupted else "finished"
            self._write(status=status, finished=_now(), peak_memory=peak)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.manifest:
            self._write()

    def so_far(self) -> dict[str, Any]:
        """Returns the manifest with the results up to now; only facts and results if training has not started."""
        state = self.trainer.state
        results = {"steps": state.global_step, "metrics": final_metrics(state.log_history)}
        return {**(self.manifest or self.trainer.facts().public()), "results": results}

    def _write(self, **news: Any) -> None:
        self.manifest = {**self.so_far(), **news}
        self._reports.write(MANIFEST, self.save)

    def save(self) -> None:
        """Write the manifest as it is, which lacks what came while the disk was full.

        Raises:
            OSError: it cannot be written; the file stays as it was.
        """
        if not self.manifest:
            return
        file = Path(str(self.trainer.args.output_dir)) / MANIFEST
        scratch = file.with_suffix(".tmp")
        try:
            scratch.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        scratch.replace(file)  # in one step: a reader finds the old file or the new one, both complete


def final_metrics(log_history: list[dict[str, float]]) -> dict[str, float]:
    """Returns the last logged value of each metric."""
    found: dict[str, float] = {}
    for entry in log_history:
        found |= {name: value for name, value in entry.items() if name not in ("epoch", "step")}
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
