"""The limits of the rules, each known once, with its source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A number from which on a rule speaks.

    Args:
        value: the number.
        unit: its unit.
        source: where it comes from; "calibration" is the comparison of healthy and sick runs in docs/health.md.
    """

    value: float
    unit: str
    source: str


_OWN = "calibration"
_PAPER = "the paper's range"
LIMITS: dict[str, Limit] = {
    "chosen falls": Limit(0.5, "nats per token below the start", _OWN),
    "margin by rejected": Limit(0.15, "nats per token that chosen answers fell", _OWN),
    "margin grown": Limit(0.5, "nats per token that the margin grew", _OWN),
    "collapse": Limit(3.0, "nats per token below the start", _OWN),
    "noise": Limit(3.0, "standard errors by which a fall on training pairs must exceed its limit", _OWN),
    "chosen low": Limit(-10.0, "nats per token", "guides to SimPO: a model below it does not learn"),
    "accuracy falls": Limit(3.0, "standard errors of the accuracy", _OWN),
    "accuracy stuck": Limit(2.0, "standard errors of an accuracy of 0.5", "the usual 95 % interval"),
    "half": Limit(0.5, "of the steps", _OWN),
    "late": Limit(0.8, "of the steps", _OWN),
    "margin short": Limit(0.1, "of the way from the starting margin to the target", _OWN),
    "margin past": Limit(
        4.0, "divided by beta, nats per token past the target", "there 2 % of the loss's slope is left"
    ),
    "margin far past": Limit(2.0, "nats per token past the target", "guides to SimPO: 2.5 in all at beta 2"),
    "gradient": Limit(10.0, "times the running median, and above all before", _OWN),
    "gradient logs": Limit(8, "logged norms before a spike is judged", _OWN),
    "loss rises": Limit(1.5, "times the loss of the start", _OWN),
    "loss still": Limit(0.02, "of the loss, between the first and the last third, two standard errors added", _OWN),
    "loss logs": Limit(12, "logged losses behind the warm-up", _OWN),
    "not moving": Limit(0.005, "nats per token from the start", _OWN),
    "beta": Limit(1.0, "", _PAPER + ", 2.0 to 10"),
    "batch": Limit(8, "pairs in a step", "runs with fewer are the ones reported to collapse"),
    "repeated": Limit(0.1, "of the training rows repeat an earlier one", _OWN),
    "trained on": Limit(0.05, "of the held-out rows are training rows", _OWN),
    "rate": Limit(1e-5, "for all weights of a model of a billion weights and more", "the authors' advice"),
    "adapter rate": Limit(1e-4, "for an adapter on such a model", "ten times that for all weights"),
    "large": Limit(1e9, "weights", "the paper's models have 7 to 9 billion"),
    "repeat rate": Limit(0.15, "above the start, share of repeated runs of four tokens", _OWN),
    "repeat collapse": Limit(0.5, "above the start", _OWN),
    "ends": Limit(0.25, "of the answers fewer than at the start", _OWN),
    "distinct": Limit(0.6, "times the distinct pairs of tokens of the start", _OWN),
    "length": Limit(2.0, "times the length of the start, or half of it", _OWN),
    "worse": Limit(2.0, "times what was told, to be told again", _OWN),
}


def limit(name: str) -> float:
    """Returns the number of a limit."""
    return LIMITS[name].value
