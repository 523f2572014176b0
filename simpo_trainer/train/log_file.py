"""Writes each entry of the log into the run's folder as it comes."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..record.folders import REPORT
from ..record.full_disk import ReportWriter
from ..record.log_file import LOG_FILE, add_to_log, begin_log


class LogFileCallback(TrainerCallback):
    """Keeps log.jsonl up to date; a run that goes on from a checkpoint begins it with the log of that."""

    def __init__(self) -> None:
        self._reports = ReportWriter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            (folder / REPORT).unlink(missing_ok=True)  # of an earlier run, or an earlier part of this one
            self._reports.write(LOG_FILE, lambda: begin_log(folder, state.log_history))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            folder = Path(str(args.output_dir))
            self._reports.write(LOG_FILE, lambda: add_to_log(folder, state.log_history[-1]))
