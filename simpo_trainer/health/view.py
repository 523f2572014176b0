"""`View`: what a run has shown so far, in the form that the rules read."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ..record.findings import TRAINING


@dataclass(frozen=True)
class Figures:
    """Means over pairs at a step; log-probabilities in nats per token.

    Args:
        step: the optimiser step.
        chosen, rejected: average log-probability of the two answers.
        accuracy: share of pairs whose chosen answer is likelier.
        error, margin_error: standard errors of `chosen` and of the margin beside the start, where that was measured on
            other pairs; 0 on the same.
    """

    step: int
    chosen: float
    rejected: float
    accuracy: float
    error: float = 0.0
    margin_error: float = 0.0

    @property
    def margin(self) -> float:
        """Returns the difference of the two."""
        return self.chosen - self.rejected

    @classmethod
    def of(cls, step: int, figures: Mapping[str, float]) -> "Figures":
        """Returns the figures of held-out pairs, as the manifest has them."""
        return cls(step, figures["chosen"], figures["rejected"], figures["accuracy"])


@dataclass(frozen=True)
class Aim:
    """What the loss aims at, where that is a margin of averages.

    Args:
        margin: the target margin, nats per token.
        beta: the scale of the reward.
    """

    margin: float
    beta: float


@dataclass(frozen=True)
class Advice:
    """The settings that a change is computed from.

    Args:
        learning_rate: the peak.
        sft_weight: the weight of the likelihood term; None for a method without one.
        epochs: passes over the data.
    """

    learning_rate: float
    sft_weight: float | None
    epochs: float

    @property
    def lower_rate(self) -> str:
        """Returns a sentence that halves the learning rate."""
        return f"Set learning_rate: {self.learning_rate / 2:.3g} (now {self.learning_rate:g})"

    @property
    def far_lower_rate(self) -> str:
        """Returns a sentence that takes a tenth of the learning rate."""
        return f"Set learning_rate: {self.learning_rate / 10:.3g} (now {self.learning_rate:g})"

    @property
    def keep_near(self) -> str:
        """Returns a sentence that keeps the model nearer to its chosen answers."""
        if self.sft_weight is None:
            return f"{self.lower_rate}."
        return f"{self.lower_rate}, or sft_weight: {max(0.1, 2 * self.sft_weight):g} (now {self.sft_weight:g})."


@dataclass(frozen=True)
class View:
    """What a run has shown so far of some pairs.

    Args:
        where: "train", or the name of an evaluation set.
        step, steps: the optimiser step, and how many the run has.
        figures: of these pairs, by step; empty where they are not measured per token.
        started: whether the first of the figures is that of the untrained model.
        pairs: number of held-out pairs, or of those behind the last figures of the training.
        aim: what the loss aims at; None for a loss without a margin of averages.
        advice: the settings that a change is computed from.
    """

    where: str
    step: int
    steps: int
    figures: Sequence[Figures]
    started: bool
    pairs: int
    aim: Aim | None
    advice: Advice

    @property
    def done(self) -> float:
        """Returns the share of the steps that are done."""
        return self.step / max(1, self.steps)

    @property
    def held_out(self) -> bool:
        """Returns whether the pairs are not trained on."""
        return self.where != TRAINING

    @property
    def start(self) -> Figures | None:
        """Returns the figures of the untrained model, if something was measured since."""
        return self.figures[0] if self.started and len(self.figures) > 1 else None

    @property
    def now(self) -> Figures:
        """Returns the last figures."""
        return self.figures[-1]


def training_figures(
    log: Sequence[Mapping[str, Any]], names: Mapping[str, str], pairs: int, since: int = 0
) -> list[Figures]:
    """Returns the figures of training logs: each a mean over enough logs up to it to hold `pairs` pairs.

    Args:
        log: training logs with `step`, oldest first.
        names: names of `chosen`, `rejected` and `accuracy` in a log.
        pairs: as many pairs as make a mean that can be judged.
        since: the number of logs at the beginning whose figures are known already.
    """
    found: list[Figures] = []
    for i, entry in enumerate(log[since:], since):
        each_log = (entry.get("num_pairs_seen") or 0) / (i + 1) or pairs
        window = log[max(0, i + 1 - max(1, round(pairs / each_log))) : i + 1]
        means = {name: sum(each[key] for each in window) / len(window) for name, key in names.items()}
        recent = log[max(0, i - _RECENT) : i + 1]
        chosen = [each[names["chosen"]] for each in recent]
        margins = [each[names["chosen"]] - each[names["rejected"]] for each in recent]
        share = math.sqrt(1 / len(window) + each_log / pairs)  # that of the start too, a mean over so many pairs
        figures = Figures.of(int(entry["step"]), means)
        found.append(replace(figures, error=share * _spread(chosen), margin_error=share * _spread(margins)))
    return found


# The spread of logs is that of as many of the last ones.
_RECENT = 50


def _spread(values: Sequence[float]) -> float:
    """Returns the standard deviation of logs around their trend, which differences of neighbours do not see."""
    steps = [(after - before) ** 2 for before, after in pairwise(values)]
    return math.sqrt(statistics.fmean(steps) / 2) if len(steps) > 2 else math.inf
