"""Rules on settings and rows, before the first step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..record.findings import SETTINGS, Finding
from .limits import limit


@dataclass(frozen=True)
class Planned:
    """What is known of a run before its first step.

    Args:
        beta: the scale of the reward; None where the loss does not compare averages by SimPO's reward.
        batch: pairs of an optimiser step.
        learning_rate: the peak.
        weights: number of the model's weights.
        adapts: whether an adapter is trained.
        rows: of the training set; None for a stream.
        repeated: how many of them repeat an earlier one.
        held_out: for each evaluation set its rows, and how many of them are training rows; without streams.
    """

    beta: float | None
    batch: int
    learning_rate: float
    weights: int
    adapts: bool
    rows: int | None = None
    repeated: int | None = None
    held_out: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def planned_findings(run: Planned) -> list[Finding]:
    """Returns what can be said of the settings of a run."""
    rules = (_tiny_beta, _tiny_batch, _high_rate, _repeated_pairs, _not_held_out)
    return [found for rule in rules if (found := rule(run))]


def _tiny_beta(run: Planned) -> Finding | None:
    if run.beta is None or run.beta >= limit("beta"):
        return None
    seen = f"beta is {run.beta:g}; the paper uses 2.0 to 10, because the reward is a mean over tokens."
    return _of("tiny beta", seen, "a beta made for DPO, whose reward is a sum over tokens", "Set beta: 2.0.")


def _tiny_batch(run: Planned) -> Finding | None:
    if run.batch >= limit("batch"):
        return None
    seen = f"a step has {run.batch} pair{'s' if run.batch > 1 else ''}; the paper's have 128."
    change = "Set global_batch_size: 16 or more; it needs no more memory, the accumulation follows from it."
    return _of("tiny batch", seen, "a batch per device taken for that of a step", change)


def _high_rate(run: Planned) -> Finding | None:
    highest = limit("adapter rate" if run.adapts else "rate")
    if run.weights < limit("large") or run.learning_rate < highest:
        return None
    what = "an adapter on" if run.adapts else "all weights of"
    usual = "5e-6" if run.adapts else "5e-7"
    seen = f"learning_rate is {run.learning_rate:g} for {what} a model of {run.weights / 1e9:.1f} billion weights."
    return _of("high rate", seen, "a rate made for supervised fine-tuning", f"Set learning_rate: {usual}.")


def _repeated_pairs(run: Planned) -> Finding | None:
    if not run.rows or not run.repeated or run.repeated < limit("repeated") * run.rows:
        return None
    seen = f"{run.repeated} of {run.rows} training rows ({run.repeated / run.rows:.0%}) repeat an earlier one."
    change = "Take each once; for more passes over all of them raise num_train_epochs."
    return _of(
        "repeated pairs", seen, "a set that was joined with itself, or one that is in two parts of a mix", change
    )


def _not_held_out(run: Planned) -> Finding | None:
    least = limit("trained on")
    counts = [
        f"{trained} of {rows} rows of {name}"
        for name, (rows, trained) in run.held_out.items()
        if rows and trained >= least * rows
    ]
    if not counts:
        return None
    seen = f"{', '.join(counts)} are training rows too: what they show was learned by heart."
    cause = "one file given for both, or a test split that was carved of a set with repeated rows"
    return _of("not held out", seen, cause, "Take them out of one of the sets.")


def _of(rule: str, seen: str, cause: str, change: str) -> Finding:
    return Finding(rule, 0, SETTINGS, None, seen, cause, change)
