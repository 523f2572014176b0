"""Pictures of a run, drawn from its log."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .style import BLUE, COLOURS, GREEN, GUIDE, MARKERS, ORANGE, finish_panel, picture

_EVAL = {"linewidth": 1.2, "linestyle": "--", "markersize": 4}
# The training has the first colour.
_SHADES = COLOURS[1:]
# From so many points on, single logs hide their own course: they are drawn faintly, with their running mean on top.
_MANY = 60


def training_curves(
    log_history: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    target_margin: float | None = None,
    unit: str = "nats per token",
) -> bool:
    """Draw loss, margin, log-probabilities, accuracy, learning rate and gradient norm over the optimiser steps.

    Args:
        log_history: the trainer's log; evaluations are drawn beside the training.
        path: the PNG file to write.
        target_margin: drawn as a line beside the margin.
        unit: of log-probabilities and margins.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    if not any("loss" in entry or _eval_prefixes(entry) for entry in log_history):
        return False
    with picture(2, 3) as (figure, grid):
        axes = grid.flatten()
        logged = {key for entry in log_history for key in entry}
        if "mean_token_accuracy" in logged and "rewards/accuracies" not in logged:
            _draw_texts(axes, log_history)
        else:
            _draw_pairs(axes, log_history, target_margin, unit)
        _draw(axes[4], log_history, {"learning_rate": ("train", BLUE)}, "Learning rate", "learning rate")
        _draw(axes[5], log_history, {"grad_norm": ("train", BLUE)}, "Gradient norm", "norm before clipping")
        for axis in axes:
            finish_panel(axis)
        figure.savefig(path)
    return True


def _draw_pairs(axes: Any, log_history: Sequence[Mapping[str, float]], target_margin: float | None, unit: str) -> None:
    """The first four panels of training on pairs."""
    _draw(axes[0], log_history, {"loss": ("train", BLUE)}, "Loss", "loss per pair")
    _draw(axes[1], log_history, {"logps/margins": ("train", BLUE)}, "Margin (chosen - rejected)", unit)
    if target_margin is not None:
        axes[1].axhline(target_margin, **GUIDE, label=f"target {target_margin:g}")
    sides = {"logps/chosen": ("chosen", GREEN), "logps/rejected": ("rejected", ORANGE)}
    _draw(axes[2], log_history, sides, "Log-probability of answers", unit)
    _draw(axes[3], log_history, {"rewards/accuracies": ("train", BLUE)}, "Accuracy", "share of pairs won")
    axes[3].axhline(0.5, **GUIDE, label="chance")
    axes[3].set_ylim(-0.02, 1.02)


def _draw_texts(axes: Any, log_history: Sequence[Mapping[str, float]]) -> None:
    """The first four panels of training on single texts."""
    _draw(axes[0], log_history, {"loss": ("train", BLUE)}, "Loss", "nats per token")
    _draw(axes[1], log_history, {"mean_token_accuracy": ("train", BLUE)}, "Token accuracy", "share of tokens")
    _draw(axes[2], log_history, {"entropy": ("train", BLUE)}, "Entropy", "nats per token")
    _draw(axes[3], log_history, {"num_tokens": ("train", BLUE)}, "Tokens", "tokens seen")


def _draw(
    axis: Any, log_history: Sequence[Mapping[str, float]], names: Mapping[str, tuple[str, str]], title: str, unit: str
) -> None:
    """One panel: each metric of training as a line, that of each evaluation set as dashed dots in its own colour."""
    axis.set(title=title, ylabel=unit, xlabel="optimiser step")
    prefixes = sorted({prefix for entry in log_history for prefix in _eval_prefixes(entry)})
    for name, (label, colour) in names.items():
        text, (steps, values) = label, _series(log_history, name)
        if len(steps) >= _MANY and name != "learning_rate":
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            text, values = f"{label} (mean)", _running_mean(values, len(values) // 20)
        axis.plot(steps, values, color=colour, label=text, marker="o" if len(steps) == 1 else None)
        for number, prefix in enumerate(prefixes):
            steps, values = _series(log_history, prefix + name)
            if steps:
                own = colour if len(names) > 1 else _SHADES[number % len(_SHADES)]
                text = prefix.rstrip("_").replace("_", " ")
                text = f"{label}, {text}" if len(names) > 1 else text
                axis.plot(steps, values, color=own, label=text, marker=MARKERS[number % len(MARKERS)], **_EVAL)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each point and `window` on either side of it, fewer at the ends."""
    around = [values[max(0, i - window) : i + window + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in around]


def _series(log_history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[name]) for entry in log_history if isinstance(entry.get(name), float | int)]
    return [step for step, _ in points], [value for _, value in points]


def _eval_prefixes(entry: Mapping[str, float]) -> list[str]:
    """ "eval_", or "eval_<set>_" of each set, that an entry of the log has results of."""
    for end in ("rewards/accuracies", "mean_token_accuracy"):
        if found := [name.removesuffix(end) for name in entry if name.endswith(end) and name != end]:
            return found
    return []
