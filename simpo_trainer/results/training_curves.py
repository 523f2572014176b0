"""Pictures of a run, drawn from its log."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..record.metric_table import ACCURACY, CHOSEN, MARGINS, REJECTED, Metric, metrics_of, prefixes_of
from ..record.reader import PER_TOKEN
from .style import BLUE, COLOURS, GREEN, GUIDE, MARKERS, ORANGE, finish_panel, picture

Log = Sequence[Mapping[str, float]]

_EVAL = {"linewidth": 1.2, "linestyle": "--", "markersize": 4}
# Colours of evaluation sets; the training has the first colour.
_SHADES = COLOURS[1:]
# Colours of several metrics in one panel.
_SIDES = (GREEN, ORANGE, *COLOURS[3:])
_COLUMNS = 3
# A line with this many points or more is noisy: it is drawn faintly, with its running mean on top.
_MANY = 60


def training_curves(
    log_history: Log,
    path: str | Path,
    *,
    target_margin: float | None = None,
    unit: str = "nats per token",
    start: Mapping[str, Any] | None = None,
    held_out: Mapping[str, Any] | None = None,
) -> bool:
    """Draw loss, margin, log-probabilities, accuracy, learning rate and gradient norm over the optimiser steps.

    Args:
        log_history: the trainer's log; evaluations are drawn in the same panels as the training.
        path: the PNG file to write.
        target_margin: drawn as a line in the panel of the margin.
        unit: the unit of log-probabilities and margins.
        start: metrics of the untrained model on training rows, by their names in the log; drawn as a mark at step 0.
        held_out: `held_out` of the run's manifest; evaluations per token begin with the untrained model's.

    Returns:
        False if there was nothing to draw, so that no file was written.
    """
    metrics, mark = metrics_of(name for entry in log_history for name in entry)
    prefixes = sorted({prefix for entry in log_history for prefix in prefixes_of(entry, mark) if prefix})
    if not prefixes and not any("loss" in entry for entry in log_history):
        return False
    log_history = with_untrained(log_history, unit, held_out or {})
    panels = panels_of(metrics)
    with picture(-(-len(panels) // _COLUMNS), _COLUMNS) as (figure, grid):
        axes = grid.flatten()
        for axis, ((title, measure), shown) in zip(axes, panels.items(), strict=False):
            axis.set(title=title, ylabel=measure.format(unit=unit), xlabel="optimiser step")
            draw_lines(axis, log_history, shown, prefixes)
            _mark_start(axis, shown, start or {})
            draw_guides(axis, shown[0].name, target_margin)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[: len(panels)]:
            finish_panel(axis, steps=int(max(entry["step"] for entry in log_history)))
        figure.savefig(path)
    return True


def panels_of(metrics: Sequence[Metric]) -> dict[tuple[str, str], list[Metric]]:
    """Returns the metrics of each panel, by its title and unit."""
    panels: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        if metric.panel:
            panels.setdefault(metric.panel, []).append(metric)
    return panels


def draw_guides(axis: Any, name: str, target_margin: float | None) -> None:
    """Add a line for the value that a metric is compared with: the target margin, or the accuracy of chance."""
    if name == MARGINS and target_margin is not None:
        axis.axhline(target_margin, **GUIDE, label=f"target {target_margin:g}")
    if name == ACCURACY:
        axis.axhline(0.5, **GUIDE, label="chance")
        axis.set_ylim(-0.02, 1.02)


def with_untrained(log_history: Log, unit: str, held_out: Mapping[str, Any]) -> Log:
    """Returns the log, behind entries of step 0 for evaluation sets that were only scored then, not evaluated.

    Args:
        log_history: the trainer's log.
        unit: of its log-probabilities; those before the first step are per token.
        held_out: `held_out` of the run's manifest.
    """
    if unit != PER_TOKEN:
        return log_history
    _, mark = metrics_of(name for entry in log_history for name in entry)
    prefixes = sorted({prefix for entry in log_history for prefix in prefixes_of(entry, mark) if prefix})
    names = {"accuracy": ACCURACY, "margin": MARGINS, "chosen": CHOSEN, "rejected": REJECTED}
    found: list[Mapping[str, float]] = []
    for prefix in prefixes:
        start = (held_out.get(prefix.rstrip("_")) or {}).get("start")
        if start and not any(entry["step"] == 0 and prefix + CHOSEN in entry for entry in log_history):
            found.append({"step": 0} | {prefix + logged: start[name] for name, logged in names.items()})
    return [*found, *log_history]


def _mark_start(axis: Any, metrics: Sequence[Metric], start: Mapping[str, Any]) -> None:
    """Mark the untrained model's values at step 0 in the colours of the training lines."""
    label = "untrained, train"
    for metric, own in zip(metrics, (BLUE,) if len(metrics) == 1 else _SIDES, strict=False):
        if isinstance(start.get(metric.name), float | int):
            axis.plot([0], [start[metric.name]], color=own, marker="*", markersize=9, linestyle="none", label=label)
            label = "_nolegend_"  # one entry explains the mark


def draw_lines(axis: Any, log_history: Log, metrics: Sequence[Metric], prefixes: Sequence[str]) -> None:
    """Draw one panel: training metrics as lines, those of each evaluation set as dashed lines with marks."""
    for metric, own in zip(metrics, (BLUE,) if len(metrics) == 1 else _SIDES, strict=False):
        label, (steps, values) = metric.line, series_of(log_history, metric.name)
        text = label
        if len(steps) >= _MANY and metric.name != "learning_rate":
            axis.plot(steps, values, color=own, alpha=0.25, linewidth=0.8)
            text, values = f"{label} (mean)", _running_mean(values, len(values) // 20)
        axis.plot(steps, values, color=own, label=text, marker="o" if len(steps) == 1 else None)
        for number, prefix in enumerate(prefixes):
            steps, values = series_of(log_history, prefix + metric.name)
            if steps:
                colour = own if len(metrics) > 1 else _SHADES[number % len(_SHADES)]
                text = prefix.rstrip("_").replace("_", " ")
                text = f"{label}, {text}" if len(metrics) > 1 else text
                axis.plot(steps, values, color=colour, label=text, marker=MARKERS[number % len(MARKERS)], **_EVAL)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Returns the mean of each point and of `window` points on each side of it, fewer at the ends."""
    around = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in around]


def series_of(log_history: Log, name: str) -> tuple[list[float], list[float]]:
    """Returns the steps at which a metric was logged, and its values."""
    points = [(entry["step"], entry[name]) for entry in log_history if isinstance(entry.get(name), float | int)]
    return [step for step, _ in points], [value for _, value in points]
