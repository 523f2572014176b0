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

# Makes the text of a figure in the table from the figures of a run.
Cell = Callable[[Mapping[str, Any]], str]


def comparison_table(comparison: Comparison) -> Table:
    """Returns a table with a column for each run and a row for each figure; some rows are left out if all are empty.

    Conditions have a row where they differ between the runs.
    """
    table = Table()
    table.add_column("")
    for run in comparison.runs:
        table.add_column(escape(run.name), justify="right")

    def cells(cell: Cell) -> list[str]:
        return [cell(figures) for figures in comparison.figures]

    conditions = [(title, cells(cell)) for title, cell in (_CONDITIONS | _UNTRAINED).items()]
    differing = [(title, found) for title, found in conditions if len(set(found)) > 1]
    measured = [(title, cells(cell)) for title, needed, cell in _ROWS if needed or {*cells(cell)} != {_DASH}]
    for title, found in (
        ("status", cells(_figure("status", ""))),
        ("method, loss", cells(_loss)),
        *differing,
        *measured,
    ):
        table.add_row(title, *map(escape, found))
    return table


def same_for_all(comparison: Comparison) -> list[str]:
    """Returns lines with the conditions that are equal in all runs, which therefore have no row in the table."""
    several = len(comparison.runs) > 1
    conditions, untrained = _equal(comparison, _CONDITIONS), _equal(comparison, _UNTRAINED)
    lines = [f"{'Same for all' if several else 'Conditions'}: {', '.join(conditions)}."] if conditions else []
    if untrained:
        lines.append(f"Before training{', the same for all' if several else ''}: {', '.join(untrained)}.")
    return lines


def _equal(comparison: Comparison, conditions: Mapping[str, Cell]) -> list[str]:
    """Returns the titles with their values of the conditions that are known and equal in all runs."""
    found = []
    for title, cell in conditions.items():
        cells = {cell(figures) for figures in comparison.figures}
        if len(cells) == 1 and _DASH not in cells:
            name, _, unit = title.removeprefix("untrained ").partition(", ")
            found.append(f"{name} {cells.pop()} {unit}".rstrip())
    return found


def show(comparison: Comparison, console: Console) -> None:
    """Print the table, with its notes and warnings below it."""
    table = comparison_table(comparison)
    if not console.is_terminal:  # a file has no fixed width
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
    for note in (*same_for_all(comparison), *comparison.notes):
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


def _figure(name: str, fmt: str) -> Cell:
    return lambda figures: _DASH if figures[name] is None else f"{figures[name]:{fmt}}"


def _loss(figures: Mapping[str, Any]) -> str:
    return " ".join(part for part in (figures["method"], figures["loss"]) if part)


def _best(prefix: str) -> Cell:
    def cell(figures: Mapping[str, Any]) -> str:
        best, step = figures[f"{prefix}best_accuracy"], figures[f"{prefix}best_accuracy_step"]
        return _DASH if best is None else f"{best:.3f} ({step})"

    return cell


def _training_pairs(figures: Mapping[str, Any]) -> str:
    """Returns the size of the training set, and its hash if the sets differ."""
    data, pairs = figures["training_data"], figures["training_pairs"]
    marks = [] if pairs is None else [f"{pairs:,}"]
    if data and marks:
        marks.append(f"({'the same' if data == 'same' else data})")
    return " ".join(marks) or _DASH


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


# Titles with the function for a run's cell; a condition that is equal in all runs has no row.
_CONDITIONS: dict[str, Cell] = {
    "optimiser steps": _figure("steps", ","),
    "pairs seen": _figure("pairs_seen", ","),
    "pairs a step": _figure("pairs_per_step", ".5g"),
    "epochs": _figure("epochs", ".3g"),
    "learning rate": _figure("learning_rate", "g"),
    "weights trained": _figure("adapter", ""),
    "training pairs": _training_pairs,
    "seed": _figure("seed", ""),
    "beta": _figure("beta", "g"),
    "target margin": _figure("target_margin", "g"),
}
_UNTRAINED: dict[str, Cell] = {
    "untrained held-out accuracy": _figure("untrained_accuracy", ".3f"),
    "untrained margin, nats per token": _figure("untrained_margin_nats_per_token", "+.3f"),
    "untrained chosen log-prob, nats per token": _figure("untrained_chosen_nats_per_token", ".3f"),
}
# Title, whether the row is shown even if it is empty for all runs, and the function for a run's cell.
_ROWS: tuple[tuple[str, bool, Cell], ...] = (
    ("held-out accuracy, final", True, _figure("accuracy", ".3f")),
    ("held-out accuracy, best (step)", False, _best("")),
    ("margin, nats per token", False, _figure("margin_nats_per_token", "+.3f")),
    ("chosen log-prob, nats per token", False, _figure("chosen_nats_per_token", ".3f")),
    ("chosen drift, nats per token", False, _figure("chosen_drift_nats_per_token", "+.3f")),
    ("own accuracy, pair won by log-prob", False, _figure("own_pair_won_by", "")),
    ("own accuracy, final", False, _figure("own_accuracy", ".3f")),
    ("own accuracy, best (step)", False, _best("own_")),
    ("margin, nats per answer", False, _figure("margin_nats_per_answer", "+.3f")),
    ("chosen drift, nats per answer", False, _figure("chosen_drift_nats_per_answer", "+.3f")),
    ("tokens, chosen / rejected", True, _lengths),
    ("training time", True, _duration),
    ("peak memory, accelerator", False, _memory("accelerator")),
    ("peak memory, process", False, _memory("process")),
)
