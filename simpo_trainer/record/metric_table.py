"""The metrics that are shown: one line each, for the log line, the card, the curves and the comparison."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ACCURACY, MARGINS = "rewards/accuracies", "logps/margins"
CHOSEN, REJECTED = "logps/chosen", "logps/rejected"
CHOSEN_LENGTH, REJECTED_LENGTH = "lengths/chosen", "lengths/rejected"
TOKEN_ACCURACY = "mean_token_accuracy"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `{unit}` in a text stands for the unit of log-probabilities.

    Args:
        name: in the log, without the prefix of an evaluation set.
        label: on the line that a log prints, and its number format; None for a metric that is not on it.
        row: title and number format in the card's table of results; None for a metric that is not in it.
        panel: title and unit of its panel among the training curves; None for a metric without one.
        line: its name in a panel that it shares with others.
        methods: those whose cards have the row; empty for all.
    """

    name: str
    label: tuple[str, str] | None = None
    row: tuple[str, str] | None = None
    panel: tuple[str, str] | None = None
    line: str = "train"
    methods: tuple[str, ...] = ()


_LOGPS = ("Log-probability of answers", "{unit}")
_OF_TRAINING = (
    Metric("grad_norm", ("grad", ".2f"), panel=("Gradient norm", "norm before clipping")),
    Metric("learning_rate", ("lr", ".1e"), panel=("Learning rate", "learning rate")),
)
# Of training on pairs. Their order is that of lines, rows and panels.
PAIR_METRICS: tuple[Metric, ...] = (
    Metric("loss", ("loss", ".4f"), ("loss", ".4f"), ("Loss", "loss per pair")),
    Metric(
        ACCURACY,
        ("accuracy", ".3f"),
        ("accuracy (share of pairs whose chosen answer {won})", ".3f"),
        ("Accuracy", "share of pairs won"),
    ),
    Metric("rewards/margins", row=("margin of the rewards", "+.4f"), methods=("dpo",)),
    Metric(MARGINS, ("margin", "+.3f"), ("margin, {unit}", "+.4f"), ("Margin (chosen - rejected)", "{unit}")),
    Metric("logps/past_target", row=("share of pairs past the target margin", ".3f"), methods=("simpo",)),
    Metric(CHOSEN, ("chosen", ".3f"), ("log-probability of chosen answers, {unit}", ".4f"), _LOGPS, "chosen"),
    Metric(REJECTED, ("rejected", ".3f"), ("log-probability of rejected answers, {unit}", ".4f"), _LOGPS, "rejected"),
    *_OF_TRAINING,
)
# Of training on single texts.
TEXT_METRICS: tuple[Metric, ...] = (
    Metric("loss", ("loss", ".4f"), ("loss", ".4f"), ("Loss", "nats per token")),
    Metric(
        TOKEN_ACCURACY,
        ("token accuracy", ".3f"),
        ("share of tokens that the model would have chosen itself", ".3f"),
        ("Token accuracy", "share of tokens"),
    ),
    Metric(
        "entropy",
        ("entropy", ".3f"),
        ("entropy of its predictions, nats", ".4f"),
        ("Entropy", "nats per token"),
    ),
    Metric("num_tokens", panel=("Tokens", "tokens seen")),
    *_OF_TRAINING,
)


def metrics_of(logged: Iterable[str]) -> tuple[tuple[Metric, ...], str]:
    """The table for a run that logs these names, and the metric by which an evaluation set is told in a log."""
    names = list(logged)
    if not any(name.endswith(ACCURACY) for name in names) and any(name.endswith(TOKEN_ACCURACY) for name in names):
        return TEXT_METRICS, TOKEN_ACCURACY
    return PAIR_METRICS, ACCURACY


def prefixes_of(logs: Mapping[str, Any], mark: str) -> list[str]:
    """The prefixes under which a log has the metric `mark`: "", "eval_", or "eval_<set>_"."""
    return [name.removesuffix(mark) for name in logs if name.endswith(mark)]
