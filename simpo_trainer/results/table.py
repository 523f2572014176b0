"""The comparison as a table for the terminal, and as JSON and CSV for programs."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .comparison import Comparison

_DASH = "-"


def comparison_table(comparison: Comparison) -> Table:
    """Returns a table with a column for each run and a row for each figure; some rows are left out if all are empty."""
    table = Table()
    table.add_column("")
    for run in comparison.runs:
        table.add_column(escape(run.name), justify="right")
    for title, needed, cell in _ROWS:
        cells = [cell(figures) for figures in comparison.figures]
        if needed or any(text != _DASH for text in cells):
            table.add_row(title, *map(escape, cells))
    return table


def show(comparison: Comparison, console: Console) -> None:
    """Print the table, with its notes and warnings below it."""
    table = comparison_table(comparison)
    if not console.is_terminal:  # a file has no fixed width
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
    for note in comparison.notes:
        console.print(escape(note), highlight=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(f"[bold yellow]Warning:[/bold yellow] {escape(warning)}", highlight=False, soft_wrap=True)


def as_json(comparison: Comparison) -> str:
    """Returns figures, evaluations, drifts and notes as JSON; missing and not finite values are null."""
    runs = [
        {
            "name": run.name,
            **figures,
            "unit": run.unit,
            "held_out_sha256": run.held_out,
            "trained_on_sha256": run.trained_on,
            "evaluations": [asdict(point) for point in run.evaluations],
            "chosen_drift": asdict(drift) if drift else None,
        }
        for run, figures, drift in zip(comparison.runs, comparison.figures, comparison.drifts, strict=True)
    ]
    whole = {
        "runs": runs,
        "chosen_drift_measure": comparison.drift_measure,
        "notes": comparison.notes,
        "warnings": comparison.warnings,
    }
    return json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Returns the figures as CSV with a line for each run; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["run", *comparison.figures[0]], lineterminator="\n")
    writer.writeheader()
    for run, figures in zip(comparison.runs, comparison.figures, strict=True):
        writer.writerow({"run": run.name, **figures})
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- Rows ----

Cell = Callable[[Mapping[str, Any]], str]


def _figure(name: str, fmt: str) -> Cell:
    return lambda figures: _DASH if figures[name] is None else f"{figures[name]:{fmt}}"


def _loss(figures: Mapping[str, Any]) -> str:
    return " ".join(part for part in (figures["method"], figures["loss"]) if part)


def _best(figures: Mapping[str, Any]) -> str:
    if figures["best_accuracy"] is None:
        return _DASH
    return f"{figures['best_accuracy']:.3f} ({figures['best_accuracy_step']})"


def _lengths(figures: Mapping[str, Any]) -> str:
    sides = [figures["chosen_tokens"], figures["rejected_tokens"]]
    return _DASH if None in sides else " / ".join(f"{tokens:.1f}" for tokens in sides)


def _duration(figures: Mapping[str, Any]) -> str:
    seconds = figures["training_seconds"]
    if seconds is None:
        return _DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _memory(kind: str) -> Cell:
    def cell(figures: Mapping[str, Any]) -> str:
        size = figures[f"peak_memory_{kind}_bytes"]
        return _DASH if size is None else f"{size / 2**20:,.0f} MiB"

    return cell


# Title, whether the row is shown even if it is empty for all runs, and the function for a run's cell.
_ROWS: tuple[tuple[str, bool, Cell], ...] = (
    ("status", True, lambda figures: figures["status"]),
    ("method, loss", True, _loss),
    ("pair won by log-prob", True, _figure("pair_won_by", "")),
    ("held-out accuracy, final", True, _figure("accuracy", ".3f")),
    ("held-out accuracy, best (step)", True, _best),
    ("margin, nats per token", False, _figure("margin_nats_per_token", "+.3f")),
    ("margin, nats per answer", False, _figure("margin_nats_per_answer", "+.3f")),
    ("chosen drift, nats per token", False, _figure("chosen_drift_nats_per_token", "+.3f")),
    ("chosen drift, nats per answer", False, _figure("chosen_drift_nats_per_answer", "+.3f")),
    ("tokens, chosen / rejected", True, _lengths),
    ("training time", True, _duration),
    ("peak memory, accelerator", False, _memory("accelerator")),
    ("peak memory, process", False, _memory("process")),
)
