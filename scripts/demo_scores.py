"""The figures of greedy answers: share of constraints met, lengths, repetition; and differences between two models."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo_rules import met, repeat_rate

# Resamples of a bootstrap interval, and their seed.
_RESAMPLES, _SEED = 4000, 0


@dataclass(frozen=True)
class Evaluation:
    """The greedy answers of a model to prompts, in the order of their keys, and what each meets."""

    prompts: list[str]
    kinds: list[list[str]]
    met: list[list[bool]]
    answers: list[str]
    tokens: list[int]
    cut: list[bool]

    @property
    def shares(self) -> np.ndarray:
        """Returns the share of constraints met, by prompt."""
        return np.array([sum(found) / len(found) for found in self.met])

    @property
    def share(self) -> float:
        """Returns the share of all constraints that are met."""
        return statistics.fmean(found for each in self.met for found in each)

    def by_kind(self) -> dict[str, tuple[float, int]]:
        """Returns for each kind of constraint the share that is met, and how many there are."""
        found: dict[str, list[bool]] = {}
        for kinds, results in zip(self.kinds, self.met, strict=True):
            for kind, result in zip(kinds, results, strict=True):
                found.setdefault(kind, []).append(result)
        return {kind: (statistics.fmean(results), len(results)) for kind, results in sorted(found.items())}

    def figures(self) -> dict[str, float]:
        """Returns the figures over all prompts."""
        return {
            "constraints met": self.share,
            "prompts with all met": float((self.shares == 1).mean()),
            "mean tokens": statistics.fmean(self.tokens),
            "cut off": statistics.fmean(self.cut),
            "repeat rate": statistics.fmean(map(repeat_rate, self.answers)),
        }


def evaluate(file: Path) -> Evaluation:
    """Returns what a file of greedy answers comes to, whose rows have kept their constraints."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["prompt"][0]["content"])
    return Evaluation(
        prompts=[row["prompt"][0]["content"] for row in rows],
        kinds=[[each["kind"] for each in row["constraints"]] for row in rows],
        met=[met(row["constraints"], row["answers"][0]) for row in rows],
        answers=[row["answers"][0] for row in rows],
        tokens=[row["token_counts"][0] for row in rows],
        cut=[row["finish_reasons"][0] == "length" for row in rows],
    )


def paired_interval(before: Evaluation, after: Evaluation) -> tuple[float, float, float]:
    """Returns the mean difference of the shares over the same prompts, and its 95 % interval by a paired bootstrap."""
    differences = after.shares - before.shares
    rng = np.random.default_rng(_SEED)
    means = differences[rng.integers(0, len(differences), (_RESAMPLES, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def changed(before: Evaluation, after: Evaluation) -> tuple[int, int]:
    """Returns the number of constraints that only the second model meets, and that only the first one does."""
    both = [pair for old, new in zip(before.met, after.met, strict=True) for pair in zip(old, new, strict=True)]
    return both.count((False, True)), both.count((True, False))
