"""The pictures of a report: SVG that needs no style of its own, so that the page can forbid all but its one sheet."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..record.findings import Finding
from ..record.metric_table import Metric, metrics_of, prefixes_of
from ..record.pair_scores import ScoredSet
from ..results.style import BLUE, COLOURS, FINDING, GUIDE, ORANGE, as_svg, finish_panel, picture
from ..results.training_curves import draw_guides, draw_lines, panels_of, series_of, with_untrained
from .run_files import Json, RunFiles

# Points of a curve; more cannot be told apart, and would make the page heavy.
MOST_POINTS = 2000
_PANEL = (4.6, 3.3)
# Lengths whose longest is so many times the shortest are drawn on a logarithmic scale.
_WIDE = 20


@dataclass(frozen=True)
class Chart:
    """A picture with the text that stands for it.

    Args:
        title: over it.
        svg: the picture.
        text: for those who cannot see it.
    """

    title: str
    svg: str
    text: str


def curves(run: RunFiles) -> list[Chart]:
    """Returns a chart for each panel of the metric table, with a line where a finding on its metric was told.

    The other findings stand as marks at the foot of it, so that a change of one curve can be told from another's.
    """
    unit = run.manifest.get("log_prob_unit") or "nats per answer"
    log = with_untrained(run.log, unit, run.manifest.get("held_out") or {})
    metrics, mark = metrics_of(name for entry in log for name in entry)
    prefixes = sorted({prefix for entry in log for prefix in prefixes_of(entry, mark) if prefix})
    charts = []
    for (title, measure), shown in panels_of(metrics).items():
        kept = thinned(log, [prefix + metric.name for metric in shown for prefix in ("", *prefixes)])
        if not kept:
            continue
        found = [each for each in run.findings or [] if each.metric in {metric.name for metric in shown}]
        with _svg(steps=max(1, run.step)) as (axis, drawn):
            axis.set(ylabel=measure.format(unit=unit), xlabel="optimiser step")
            draw_lines(axis, kept, shown, prefixes)
            draw_guides(axis, shown[0].name, run.manifest.get("target_margin"))
            _mark_findings(axis, found, run.findings or [])
        charts.append(Chart(title, drawn.svg, _in_words(title, kept, shown, found)))
    return charts


def several(runs: Sequence[RunFiles]) -> list[Chart]:
    """Returns the training curves of several runs in one chart for each metric, and those on held-out pairs."""
    charts = []
    for title, name in (("Loss", "loss"), ("Accuracy", "rewards/accuracies"), ("Margin", "logps/margins")):
        for prefix, kind in (("", "training"), ("eval_", "held-out pairs")):
            lines = [(run.name, series_of(thinned(run.log, [prefix + name]), prefix + name)) for run in runs]
            if not any(steps for _, (steps, _) in lines):
                continue
            with _svg(steps=max(run.step for run in runs)) as (axis, drawn):
                axis.set(ylabel=title.lower(), xlabel="optimiser step")
                for number, (label, (steps, values)) in enumerate(lines):
                    axis.plot(steps, values, color=COLOURS[number % len(COLOURS)], label=_legend(label))
            charts.append(Chart(f"{title}, {kind}", drawn.svg, f"{title} of {len(runs)} runs on {kind} by step."))
    return charts


def margins(scored: ScoredSet) -> Chart | None:
    """Returns a histogram of the margins of the held-out pairs before and after training."""
    sides = [("before", scored.start, BLUE), ("after", scored.end, ORANGE)]
    known = [
        (label, averages[:, 0] - averages[:, 1], colour) for label, averages, colour in sides if averages is not None
    ]
    if not known:
        return None
    low, high = (float(np.quantile(np.concatenate([each for _, each, _ in known]), share)) for share in (0.005, 0.995))
    bins = np.linspace(low, max(high, low + 1e-3), 31)
    with _svg() as (axis, drawn):
        axis.set(xlabel="chosen - rejected, nats per token", ylabel="pairs")
        for label, values, colour in known:
            axis.hist(np.clip(values, low, high), bins=bins, color=colour, alpha=0.55, label=label)
        axis.axvline(0, **GUIDE)
    return Chart("Margins of held-out pairs", drawn.svg, "Histogram of margins before and after training.")


def lengths(scored: ScoredSet) -> Chart | None:
    """Returns the average log-probability of each held-out answer against its length, before and after."""
    known = [(label, each) for label, each in (("before", scored.start), ("after", scored.end)) if each is not None]
    if not known:
        return None
    with _svg() as (axis, drawn):
        axis.set(xlabel="answer, tokens", ylabel="nats per token")
        if scored.lengths.max() > _WIDE * max(1, scored.lengths.min()):
            axis.set_xscale("log")
        for (label, averages), colour in zip(known, (BLUE, ORANGE), strict=False):
            axis.scatter(
                scored.lengths.ravel(), averages.ravel(), s=12, color=colour, alpha=0.45, label=label, linewidths=0
            )
    return Chart(
        "Reward against length",
        drawn.svg,
        "Average log-probability of each held-out answer against its length, before and after training.",
    )


def thinned(log: Sequence[Json], names: Sequence[str]) -> list[Json]:
    """Returns the entries that hold one of the metrics, at most `MOST_POINTS`, the first and last among them."""
    kept = [entry for entry in log if any(isinstance(entry.get(name), int | float) for name in names)]
    if len(kept) <= MOST_POINTS:
        return kept
    places = np.linspace(0, len(kept) - 1, MOST_POINTS).round().astype(int)
    return [kept[place] for place in places]


def _mark_findings(axis: Any, own: Sequence[Finding], findings: Sequence[Finding]) -> None:
    for number, found in enumerate(own):
        axis.axvline(found.step, **FINDING, label="finding" if not number else "_nolegend_")
    steps = sorted({found.step for found in findings} - {found.step for found in own})
    if steps:
        style = {"color": FINDING["color"], "marker": "^", "linestyle": "none", "markersize": 5, "clip_on": False}
        axis.plot(steps, [0] * len(steps), transform=axis.get_xaxis_transform(), label="finding elsewhere", **style)


def _legend(name: str) -> str:
    """Returns a name as a label: matplotlib hides those that begin with an underscore, and reads $ as mathematics."""
    return ("run " + name if name.startswith("_") else name).replace("$", r"\$")


def _in_words(title: str, log: Sequence[Json], metrics: Sequence[Metric], found: Sequence[Finding]) -> str:
    parts = []
    for metric in metrics:
        _, values = series_of(log, metric.name)
        if values:
            parts.append(f"{metric.line} {metric.name} from {values[0]:.4g} to {values[-1]:.4g}")
    findings = f"; findings at steps {', '.join(str(each.step) for each in found)}" if found else ""
    return f"{title} by optimiser step: {', '.join(parts) or 'held-out pairs'}{findings}."


class _Drawn:
    """Holds the picture once it is drawn."""

    svg = ""


@contextmanager
def _svg(steps: int | None = None) -> Any:
    """Draw on the axis inside the block; the picture is in the second value behind it."""
    drawn = _Drawn()
    with picture(1, 1, panel=_PANEL) as (figure, grid):
        axis = grid[0, 0]
        yield axis, drawn
        finish_panel(axis, steps=steps)
        drawn.svg = as_svg(figure)
