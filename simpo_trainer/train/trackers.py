"""Sends findings and sample tables to the experiment trackers of `report_to`, beside the metrics that they get anyway.

Each tracker's own object is behind a callback of transformers, in an attribute of its own; they are touched here alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

FINDING, SAMPLES = "health/finding", "samples"
_COLUMNS = ("step", "prompt", "answer", "tokens", "ended", "repeat_rate")


def send_finding(trainer: Any, line: str, step: int) -> None:
    """Send a finding as text."""
    for callback in trainer.callback_handler.callbacks:
        match type(callback).__name__:
            case "TensorBoardCallback" if callback.tb_writer is not None:
                callback.tb_writer.add_text(FINDING, _as_text(line), step)
            case "WandbCallback" if getattr(callback, "_wandb", None) is not None and callback._wandb.run is not None:
                callback._wandb.alert(title=FINDING, text=line)
            case "TrackioCallback" if getattr(callback, "_trackio", None) is not None:
                callback._trackio.log({FINDING: line, "train/global_step": step})


def send_samples(trainer: Any, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Send the answers of a step as a table."""
    table = [[row[name] for name in _COLUMNS] for row in rows]
    for callback in trainer.callback_handler.callbacks:
        match type(callback).__name__:
            case "TensorBoardCallback" if callback.tb_writer is not None:
                callback.tb_writer.add_text(SAMPLES, _as_markdown(table), step)
            case "WandbCallback" if getattr(callback, "_wandb", None) is not None and callback._wandb.run is not None:
                found = callback._wandb.Table(columns=list(_COLUMNS), data=table)
                callback._wandb.log({SAMPLES: found, "train/global_step": step})
            case "TrackioCallback" if getattr(callback, "_trackio", None) is not None:
                import pandas

                found = callback._trackio.Table(dataframe=pandas.DataFrame(table, columns=list(_COLUMNS)))
                callback._trackio.log({SAMPLES: found, "train/global_step": step})


def _as_markdown(table: Sequence[Sequence[Any]]) -> str:
    """Returns a table for TensorBoard, which reads Markdown: no text of the model may be markup there."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *([_as_text(str(cell)) for cell in row] for row in table)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _as_text(text: str) -> str:
    """Returns a text with everything replaced that Markdown or HTML would read."""
    marks = "\\`*_{}[]()#+-.!|<>&$~"
    return "".join(f"&#{ord(letter)};" if letter in marks else " " if letter in "\r\n" else letter for letter in text)
