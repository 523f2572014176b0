"""Rules on what the training logs: gradient norm, loss, and log-probabilities that cannot be."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..record.findings import TRAINING, Finding
from ..record.metric_table import CHOSEN, REJECTED
from .limits import limit
from .view import Advice

Log = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Logged:
    """The training logs of a run so far.

    Args:
        entries: logs with `step`, oldest first.
        steps: optimiser steps of the run.
        warmup: optimiser steps of the warm-up.
        start_loss: the preference loss of the untrained model on training pairs; None if it was not measured.
        loss: the name of the loss in the logs that compares with it.
        advice: the settings that a change is computed from.
    """

    entries: Log
    steps: int
    warmup: int
    start_loss: float | None
    loss: str
    advice: Advice

    @property
    def step(self) -> int:
        """Returns the step of the last log."""
        return int(self.entries[-1]["step"])

    def values(self, name: str) -> list[float]:
        """Returns the values of a metric, oldest first."""
        return [entry[name] for entry in self.entries if isinstance(entry.get(name), int | float)]


def above_zero(logged: Logged) -> Finding | None:
    """A log-probability above 0, which cannot be."""
    last = logged.entries[-1]
    for name in (CHOSEN, REJECTED):
        value = last.get(name)
        if isinstance(value, float) and value > 0:
            seen = f"{name} is {value:+.3f}; the logarithm of a probability is never above 0."
            cause = "scores that are no log-probabilities, from a changed model or a trainer of one's own"
            change = "Check the model's head and your own trainer class; no number of this run means anything."
            return Finding("above zero", logged.step, TRAINING, name, seen, cause, change, value, collapse=True)
    return None


def gradient_spike(logged: Logged) -> Finding | None:
    """A gradient norm far above the running median."""
    *before, last = logged.values("grad_norm") or [0.0]
    if len(before) < limit("gradient logs"):
        return None
    median = statistics.median(before[-50:])
    if not median or last < max(limit("gradient") * median, *before):
        return None
    seen = f"the gradient norm is {last:.3g}, {last / median:.0f} times its running median of {median:.3g}."
    change = f"Look at the longest and shortest answers of the data; {_lowered(logged.advice)} if it comes again."
    cause = "single pairs unlike all others, or a learning rate too high"
    return Finding("gradient spike", logged.step, TRAINING, "grad_norm", seen, cause, change, last / median)


def loss_rises(logged: Logged) -> Finding | None:
    """A loss well above that of the untrained model."""
    values, start = logged.values(logged.loss), logged.start_loss
    if start is None or start <= 0 or len(values) < 3:
        return None
    now = statistics.fmean(values[-3:])
    if now < limit("loss rises") * start:
        return None
    seen = f"the loss is {now:.3f}, a mean of three logs; it was {start:.3f} before the first step."
    change = f"{logged.advice.far_lower_rate}."
    cause = "a learning rate at which the model moves too far in a step"
    return Finding("loss rises", logged.step, TRAINING, "loss", seen, cause, change, now / start, collapse=True)


def loss_still(logged: Logged) -> Finding | None:
    """A training loss that is the same in the last third of the logs as in the first, behind the warm-up.

    It speaks only where the logs would show a change: noise of few pairs, in which a fall can hide, is no standstill.
    """
    entries = [entry for entry in logged.entries if entry["step"] > logged.warmup and "loss" in entry]
    if len(entries) < limit("loss logs") or logged.step < limit("half") * logged.steps:
        return None
    losses = [entry["loss"] for entry in entries]
    third = len(losses) // 3
    first, last = losses[:third], losses[-third:]
    before, now = statistics.fmean(first), statistics.fmean(last)
    error = (statistics.variance(first) / third + statistics.variance(last) / third) ** 0.5
    if abs(before - now) + 2 * error >= limit("loss still") * abs(before):
        return None
    if logged.start_loss and now < 0.9 * logged.start_loss:
        return None  # it has fallen, and stands where it can: what is learned
    seen = f"the loss stands still: {now:.4f} in the last third of the logs, {before:.4f} in the first."
    cause = "labels that are chance, a learning rate too low, or one so high that nothing holds"
    change = "Look at some pairs: can you tell the chosen answer? If you can, change learning_rate"
    change += f" (now {logged.advice.learning_rate:g})."
    return Finding("loss still", logged.step, TRAINING, "loss", seen, cause, change)


TRAINING_RULES = (above_zero, gradient_spike, loss_rises, loss_still)


def _lowered(advice: Advice) -> str:
    return f"set learning_rate: {advice.learning_rate / 2:.3g} (now {advice.learning_rate:g})"
