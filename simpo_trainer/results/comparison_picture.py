"""The comparison as a picture: held-out accuracy, margin and drift of all runs over the optimiser steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..record.reader import PER_ANSWER, PER_TOKEN, Point, Run
from .comparison import Comparison, won_by
from .style import MARKERS, finish_panel, line_style, picture

_COLUMNS = 3
# A line with more points than this gets about this many marks: more would hide the line.
_MARKS = 12

Series = tuple[Sequence[int], Sequence[float]]
_NOTHING: Series = ((), ())


@dataclass(frozen=True)
class _Panel:
    """The row and column of a panel, its title, its unit, and the points of each run; none for runs in other units."""

    place: tuple[int, int]
    title: str
    unit: str
    courses: list[Series]


def comparison_picture(comparison: Comparison, path: Path) -> bool:
    """Draw a line for each run into panels of one unit each, and write them as a PNG file.

    Returns:
        False if there was nothing to draw, so that no file was written.
    """
    panels = _panels(comparison)
    if not panels:
        return False
    rows = 1 + max(panel.place[0] for panel in panels)
    with picture(rows, _COLUMNS, below=0.6 if rows == 1 else 0) as (figure, axes):
        for axis in axes.flatten():
            axis.set_axis_off()
        lines: dict[int, Any] = {}
        for panel in panels:
            lines |= _draw(axes[panel.place], panel)
        names, title = _labels(comparison.runs)
        # With two rows the legend is in the free panel under the accuracy, else under all panels.
        handles = [lines[number] for number in sorted(lines)]
        shown = [names[number] for number in sorted(lines)]
        if rows > 1:
            axes[1, 0].legend(handles, shown, loc="center", title=title)
        else:
            columns = len(shown) if len(shown) <= 6 else -(-len(shown) // 2)
            figure.legend(handles, shown, loc="outside lower center", ncols=columns, title=title)
        figure.savefig(path)
    return True


def _labels(runs: Sequence[Run]) -> tuple[list[str], str | None]:
    """Returns names of the runs for the legend and its title; they say what wins a pair if that differs by run."""
    won = [won[0] if (won := won_by(run)) else None for run in runs]
    if len(set(won) - {None}) < 2:
        return [run.name for run in runs], None
    names = [f"{run.name} ({how})" if how else run.name for run, how in zip(runs, won, strict=True)]
    return names, "run (pair won by log-prob ...)"


def _panels(comparison: Comparison) -> list[_Panel]:
    """Returns the panels that are not empty: accuracy, and for each unit margin and drift."""
    runs, source = comparison.runs, (comparison.drift_measure or "").partition(",")[0]
    accuracies = [_course(run, lambda point: point.accuracy) for run in runs]
    panels = [_Panel((0, 0), "Held-out accuracy", "share of pairs won", accuracies)]
    units = [unit for unit in (PER_TOKEN, PER_ANSWER) if any(run.unit == unit for run in runs)]
    for row, unit in enumerate(units):
        margins = [_course(run, lambda point: point.margin) if run.unit == unit else _NOTHING for run in runs]
        changes = [
            (drift.steps, drift.changes) if drift and run.unit == unit else _NOTHING
            for run, drift in zip(runs, comparison.drifts, strict=True)
        ]
        panels.append(_Panel((row, 1), "Held-out margin (chosen - rejected)", unit, margins))
        panels.append(_Panel((row, 2), f"Chosen log-prob drift, {source}", unit, changes))
    return [panel for panel in panels if any(steps for steps, _ in panel.courses)]


def _course(run: Run, value: Callable[[Point], float | None]) -> Series:
    points = [(point.step, found) for point in run.evaluations if (found := value(point)) is not None]
    return [step for step, _ in points], [found for _, found in points]


def _draw(axis: Any, panel: _Panel) -> dict[int, Any]:
    """Draw a panel, and return the line of each run that has points in it, by the run's number."""
    axis.set_axis_on()
    axis.set(title=panel.title, ylabel=panel.unit, xlabel="optimiser step")
    lines = {}
    for number, (steps, values) in enumerate(panel.courses):
        if steps:
            # Each run's line is thinner than the last, so that the edges of a covered line stay visible.
            below = 1 - number / max(1, len(panel.courses) - 1)
            [lines[number]] = axis.plot(
                steps,
                values,
                **line_style(number),
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(steps) // _MARKS),
                linewidth=1.2 + 1.4 * below,
                markersize=5.5 + 1.5 * below,
                markeredgecolor="white",
                markeredgewidth=0.3,
            )
    finish_panel(axis)
    return lines
