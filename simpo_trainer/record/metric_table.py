"""The table of metrics to show: one line each, for the log line, the card, the curves and the comparison."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ACCURACY, MARGINS = "rewards/accuracies", "logps/margins"
CHOSEN, REJECTED = "logps/chosen", "logps/rejected"
CHOSEN_LENGTH, REJECTED_LENGTH = "lengths/chosen", "lengths/rejected"
TOKEN_ACCURACY = "mean_token_accuracy"
PAST_TARGET, AUX_LOSS = "logps/past_target", "aux_loss"


@dataclass(frozen=True)
class Metric:
    """The texts for a metric. `{unit}` in a text stands for the unit of log-probabilities.

    Args:
        name: its name in the log, without the prefix of an evaluation set.
        label: its name and number format on the printed log line; None if it is not printed.
        row: its title and number format in the card's table of results; None if it is not in the table.
        panel: title and unit of its panel in the training curves; None without a panel.
        line: the label of its line in the panel.
        methods: the methods whose cards have the row; empty for all.
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
# Metrics of training on pairs, in the order in which they are shown.
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
    Metric(PAST_TARGET, row=("share of pairs past the target margin", ".3f"), methods=("simpo",)),
    Metric(CHOSEN, ("chosen", ".3f"), ("log-probability of chosen answers, {unit}", ".4f"), _LOGPS, "chosen"),
    Metric(REJECTED, ("rejected", ".3f"), ("log-probability of rejected answers, {unit}", ".4f"), _LOGPS, "rejected"),
    *_OF_TRAINING,
)
# Metrics of training on single texts.
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


# For each metric of an evaluation, whether more of it is better; None where neither more nor less is.
_OF_SIMPO: dict[str, bool | None] = {
    **dict.fromkeys(("preference_loss", "sft_loss"), False),
    **dict.fromkeys((CHOSEN_LENGTH, REJECTED_LENGTH, "num_pairs"), None),
    PAST_TARGET: True,
}
_OF_PAIRS: dict[str, bool | None] = {
    **dict.fromkeys((ACCURACY, "rewards/margins", MARGINS, "rewards/chosen", CHOSEN), True),
    **dict.fromkeys(("rewards/rejected", REJECTED, "logits/chosen", "logits/rejected"), None),
}
_OF_TEXTS: dict[str, bool | None] = {TOKEN_ACCURACY: True, "entropy": None}
_OF_ALL: dict[str, bool | None] = {
    **dict.fromkeys(("loss", AUX_LOSS), False),
    **dict.fromkeys(("num_tokens", "runtime", "samples_per_second", "steps_per_second"), None),
}
_BETTER = _OF_ALL | _OF_PAIRS | _OF_SIMPO | _OF_TEXTS
# The metrics above that evaluations of a method lack.
SIMPO_LACKS, DPO_LACKS, SFT_LACKS = map(tuple, (_OF_TEXTS, _OF_SIMPO, _OF_PAIRS | _OF_SIMPO))
_OF_A_PART = "losses/"


def evaluated_name(logged: str) -> str | None:
    """Returns a metric's name without the prefix of its evaluation set; None for one that is not of this table."""
    if _OF_A_PART in logged:
        return logged[logged.index(_OF_A_PART) :]
    return next((name for name in sorted(_BETTER, key=len, reverse=True) if _ends_with(logged, name)), None)


def _ends_with(logged: str, name: str) -> bool:
    return logged == name or logged.endswith(f"_{name}")


def more_is_better(name: str) -> bool | None:
    """Returns whether more of a metric of this table is better; None where neither more nor less is."""
    return False if name.startswith(_OF_A_PART) else _BETTER[name]


def measured_names() -> list[str]:
    """Returns the names of all metrics of an evaluation, without those of the parts of a mix."""
    return list(_BETTER)


def metrics_of(logged: Iterable[str]) -> tuple[tuple[Metric, ...], str]:
    """Returns the metrics of a run that logs these names, and the metric whose prefixes name its evaluation sets."""
    names = list(logged)
    if not any(name.endswith(ACCURACY) for name in names) and any(name.endswith(TOKEN_ACCURACY) for name in names):
        return TEXT_METRICS, TOKEN_ACCURACY
    return PAIR_METRICS, ACCURACY


def prefixes_of(logs: Mapping[str, Any], mark: str) -> list[str]:
    """Returns the prefixes of the metric `mark` in a log: "" for the training, "eval_" or "eval_<set>_"."""
    return [name.removesuffix(mark) for name in logs if name.endswith(mark)]
