"""Prints one readable line per log while a run trains, beside the usual progress bar or without one."""

from collections.abc import Mapping

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..record.metric_table import metrics_of, prefixes_of
from .pace import Pace


def log_line(logs: Mapping[str, float], step: int, max_steps: int) -> str | None:
    """One line for a training log or for each evaluation set in `logs`; None where there is nothing to show."""
    metrics, mark = metrics_of(logs)
    lines = []
    for prefix in prefixes_of(logs, mark):
        shown = [
            f"{metric.label[0]} {logs[prefix + metric.name]:{metric.label[1]}}"
            for metric in metrics
            if metric.label and isinstance(logs.get(prefix + metric.name), float)
        ]
        lines.append(f"step {step}/{max_steps}  {prefix.rstrip('_') or 'train':5}  {'  '.join(shown)}")
    return "\n".join(lines) or None


class LineProgressCallback(ProgressCallback):
    """The usual progress bar, with :func:`log_line` instead of the raw metrics."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if line and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)


class LineCallback(TrainerCallback):
    """:func:`log_line` for logs without a progress bar, and behind a training log what the bar would show: the pace."""

    pace: Pace | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.pace = Pace(args, state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        logs = logs or {}
        line = log_line(logs, state.global_step, state.max_steps)
        if not line or not state.is_world_process_zero:
            return
        if self.pace and "loss" in logs:
            line += f"  {self.pace.of(logs, state.global_step, state.max_steps)}"
        elif self.pace:
            self.pace.leave_out(logs)
        print(line, flush=True)


def show_lines(trainer: Trainer) -> None:
    """Let the trainer's progress callback print lines; any other (a notebook's) is left as it is."""
    for raw, readable in ((ProgressCallback, LineProgressCallback), (PrinterCallback, LineCallback)):
        if any(type(callback) is raw for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(raw)
            trainer.add_callback(readable())
