"""The comparison as a picture: held-out accuracy, margin and drift of all runs over the optimiser steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..record.reader import PER_ANSWER, PER_TOKEN, Point, Run
from .comparison import Comparison, Drift, won_by
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
        last = max(step for panel in panels for steps, _ in panel.courses for step in steps)
        lines: dict[int, Any] = {}
        for panel in panels:
            lines |= _draw(axes[panel.place], panel, last)
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
    won = [_won(run) for run in runs]
    if len(set(won) - {None}) < 2:
        return [run.name for run in runs], None
    names = [f"{run.name} ({how})" if how else run.name for run, how in zip(runs, won, strict=True)]
    return names, "run (pair won by log-prob ...)"


def _panels(comparison: Comparison) -> list[_Panel]:
    """Returns the panels that are not empty: accuracy, and for each unit margin and drift."""
    runs, source = comparison.runs, (comparison.drift_measure or "").partition(",")[0]
    accuracies = [_course(_shown(run), lambda point: point.accuracy) for run in runs]
    panels = [_Panel((0, 0), "Held-out accuracy", "share of pairs won", accuracies)]
    shown = [(unit, _margins(runs, unit), _changes(comparison.drifts, unit)) for unit in (PER_TOKEN, PER_ANSWER)]
    shown = [each for each in shown if any(steps for courses in each[1:] for steps, _ in courses)]
    for row, (unit, margins, changes) in enumerate(shown):
        panels.append(_Panel((row, 1), "Held-out margin (chosen - rejected)", unit, margins))
        panels.append(_Panel((row, 2), f"Chosen log-prob drift, {source}", unit, changes))
    return [panel for panel in panels if any(steps for steps, _ in panel.courses)]


def _shown(run: Run) -> tuple[Point, ...]:
    """Returns the measurements per token, or the run's own evaluations if there are none per token."""
    return run.per_token or run.evaluations


def _won(run: Run) -> str | None:
    """Returns the condition for winning a pair in the panel of the accuracy, in short; None without accuracy."""
    if any(point.accuracy is not None for point in run.per_token):
        return PER_TOKEN.removeprefix("nats ")
    own = won_by(run)
    return own[0] if own else None


def _margins(runs: Sequence[Run], unit: str) -> list[Series]:
    def points(run: Run) -> tuple[Point, ...]:
        if unit == PER_TOKEN:
            return run.per_token
        # Beside the measurements per token, sums are worth a panel if they were measured more often.
        return run.evaluations if run.unit == unit and len(run.evaluations) > len(run.per_token) else ()

    return [_course(points(run), lambda point: point.margin) for run in runs]


def _changes(drifts: Sequence[Drift | None], unit: str) -> list[Series]:
    return [(drift.steps, drift.changes) if drift and drift.unit == unit else _NOTHING for drift in drifts]


def _course(points: Sequence[Point], value: Callable[[Point], float | None]) -> Series:
    known = [(point.step, found) for point in points if (found := value(point)) is not None]
    return [step for step, _ in known], [found for _, found in known]


def _draw(axis: Any, panel: _Panel, last: int) -> dict[int, Any]:
    """Draw a panel up to the last step, and return the line of each run that has points in it, by the run's number."""
    axis.set_axis_on()
    axis.set(title=panel.title, ylabel=panel.unit, xlabel="optimiser step")
    lines = {}
    most = max(len(steps) for steps, _ in panel.courses)
    for number, (steps, values) in enumerate(panel.courses):
        if steps:
            # Each run's line is thinner than the last, so that the edges of a covered line stay visible.
            below = 1 - number / max(1, len(panel.courses) - 1)
            [lines[number]] = axis.plot(
                steps,
                values,
                # A line through the start and the end alone would show a course that nobody measured.
                **line_style(number) | ({"linestyle": "none"} if len(steps) < 3 <= most else {}),
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(steps) // _MARKS),
                linewidth=1.2 + 1.4 * below,
                markersize=5.5 + 1.5 * below,
                markeredgecolor="white",
                markeredgewidth=0.3,
            )
    finish_panel(axis, steps=last)
    return lines
