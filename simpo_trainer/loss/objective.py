"""What a run minimises: one built-in loss or a weighted mix, with the settings of each, and what is wrong with them."""

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import SimPOError
from .losses import DEFAULTS, LOSSES, Loss

if TYPE_CHECKING:
    from ..model.scoring import AnswerScores
    from ..train.config import SimPOConfig

# Settings that a loss brings defaults for.
LOSS_SETTINGS = (*DEFAULTS, "sft_weight")
# Losses that compare with a reference model, as trl's DPOTrainer has them.
_REFERENCE_BASED = (
    *("bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot", "aot_pair", "aot_unpaired", "exo_pair", "nca_pair"),
    "sigmoid_norm",
)


@dataclass(frozen=True)
class Part:
    """A loss with its weight in the sum, and the values of the settings that it uses."""

    name: str
    loss: Loss
    weight: float
    settings: dict[str, float | None]


@dataclass(frozen=True)
class Objective:
    """The preference loss of a pair, a weighted sum of parts, and the weight of the likelihood term beside it.

    Args:
        parts: the losses.
        sft_weight: weight of the likelihood term, added once.
        by_average: what losses that can compare either compare: log-probabilities per token, or sums.
    """

    parts: tuple[Part, ...]
    sft_weight: float
    by_average: bool

    @classmethod
    def of(cls, args: "SimPOConfig") -> "Objective":
        """The objective that settings without problems ask for; what they leave open is as each loss has it."""
        parts = []
        for name, weight in zip(loss_names(args), _weights(args), strict=True):
            loss = LOSSES[name]
            values = DEFAULTS | loss.defaults | {key: value for key, value in _given(args).items()}
            parts.append(Part(name, loss, weight, {key: values[key] for key in loss.uses}))
        likelihood = sum(part.weight * part.loss.sft_weight for part in parts)
        return cls(tuple(parts), likelihood if args.sft_weight is None else args.sft_weight, args.average_log_prob)

    @property
    def compares_averages(self) -> bool:
        """Whether metrics show log-probabilities per token; where parts differ, as `average_log_prob` says."""
        kinds = {part.loss.compares for part in self.parts} - {"either"}
        return kinds == {"average"} or (kinds != {"sum"} and self.by_average)

    @property
    def unit(self) -> str:
        """Unit of the log-probabilities that are compared."""
        return "nats per token" if self.compares_averages else "nats"

    @property
    def reward_scale(self) -> float:
        """The beta of the first part; 1 where it has none."""
        return float(self.parts[0].settings.get("beta") or 1.0)

    @property
    def target_margin(self) -> float | None:
        """The margin of log-probabilities that the first part aims at, before what the data adds; None without one."""
        settings = self.parts[0].settings
        return None if "alpha" in settings else settings.get("gamma_beta_ratio")

    @property
    def gamma_beta_ratio(self) -> float:
        """The target margin that `pair_loss` is given: of the first part that has one, or 0."""
        ratios = (part.settings.get("gamma_beta_ratio") for part in self.parts)
        return next((ratio for ratio in ratios if ratio is not None), 0.0)

    @property
    def reads_margins(self) -> bool:
        """Whether margins of the data change anything."""
        return any("gamma_beta_ratio" in part.settings for part in self.parts)

    def shared(self, name: str) -> float | None:
        """The value of a setting where all parts that use it agree; None otherwise."""
        values = {part.settings[name] for part in self.parts if name in part.settings}
        return values.pop() if len(values) == 1 else None

    def compared(self, scores: "AnswerScores") -> Tensor:
        """The log-probabilities of answers that metrics show, (N,)."""
        return scores.average if self.compares_averages else scores.sum

    def losses(self, chosen: "AnswerScores", rejected: "AnswerScores", margin: Tensor) -> dict[str, Tensor]:
        """The loss of each pair by each part, without its weight, (N,) each.

        Args:
            chosen, rejected: scores of the two answers of each pair.
            margin: target margin of each pair, (N,): `gamma_beta_ratio` plus what the data adds.
        """
        return {part.name: self._loss(part, chosen, rejected, margin) for part in self.parts}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the parts, (N,)."""
        first, *rest = (part.weight * losses[part.name] for part in self.parts)
        return sum(rest, start=first)

    def _loss(self, part: Part, chosen: "AnswerScores", rejected: "AnswerScores", margin: Tensor) -> Tensor:
        by_average = part.loss.compares == "average" or (part.loss.compares == "either" and self.by_average)
        settings: dict[str, Any] = dict(part.settings)
        if "gamma_beta_ratio" in settings:
            # In a mix each keeps its own target; the data adds the same to all.
            settings["gamma_beta_ratio"] = margin + (settings["gamma_beta_ratio"] - self.gamma_beta_ratio)
        compared = [scores.average if by_average else scores.sum for scores in (chosen, rejected)]
        return part.loss.function(*compared, **settings)


def loss_names(args: "SimPOConfig") -> list[str]:
    """The names in `loss_type`, one or several."""
    return [args.loss_type] if isinstance(args.loss_type, str) else list(args.loss_type)


def _weights(args: "SimPOConfig") -> list[float]:
    return [1.0] * len(loss_names(args)) if args.loss_weights is None else list(args.loss_weights)


def _given(args: "SimPOConfig") -> dict[str, float]:
    return {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}


# ---- What can be wrong ----


def loss_problems(args: "SimPOConfig") -> list[str]:
    """What is wrong with the settings of the loss, a sentence for each problem."""
    names = loss_names(args)
    problems = [_unknown(name) for name in names if name not in LOSSES]
    if not names:
        problems.append("loss_type is an empty list; it must name at least one loss. Set loss_type: sigmoid.")
    if len(set(names)) < len(names):
        problems.append(f"loss_type names a loss twice: {', '.join(names)}. Add up its weights in loss_weights.")
    problems += _weight_problems(args, names)
    for name, (good, change) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not good(value):
            problems.append(f"{name} is {value}; {change}")
    if "robust" in names and args.label_smoothing == 0.5:
        problems.append(
            "label_smoothing is 0.5, and the robust loss divides by 1 - 2 * label_smoothing: labels that are right half of "
            "the time teach nothing. Set label_smoothing: 0.1."
        )
    if args.sft_reduction not in ("sequence", "token", "sum"):
        problems.append(f"sft_reduction is {args.sft_reduction!r}; it must be 'sequence', 'token' or 'sum'.")
    return problems


def check_loss_names(names: list[str]) -> list[str]:
    """The names, or all of them where none is given.

    Raises:
        SimPOError: a name is not known.
    """
    if problems := [_unknown(name) for name in names if name not in LOSSES]:
        raise SimPOError("\n".join(problems))
    return names or list(LOSSES)


# Setting to what it must be, and what to say otherwise.
_RANGES: dict[str, tuple[Any, str]] = {
    "beta": (lambda x: 0 < x < math.inf, "it must be above 0. Set beta: 2.0 (SimPO's paper uses 2.0 to 10)."),
    "gamma_beta_ratio": (
        lambda x: 0 <= x < math.inf,
        "a target margin is a number, 0 or above. Set gamma_beta_ratio: 0.5 (the paper uses 0.1 to 0.8).",
    ),
    "label_smoothing": (
        lambda x: 0 <= x <= 0.5,
        "it must lie in [0, 0.5]: above 0.5 the labels would count as swapped. Set label_smoothing: 0.0.",
    ),
    "alpha": (lambda x: math.isfinite(x), "it must be a number. Set alpha: 0.25."),
    "slic_delta": (lambda x: 0 <= x < math.inf, "a margin is a number, 0 or above. Set slic_delta: 1.0."),
    "discopop_tau": (lambda x: 0 < x < 1, "it must lie between 0 and 1, or the loss is not finite. Set it to 0.05."),
    "squared_target": (lambda x: math.isfinite(x), "it must be a number. Leave it out for beta * gamma_beta_ratio."),
    "sft_weight": (lambda x: 0 <= x < math.inf, "it must be 0 or above. Set sft_weight: 0.0."),
    "margin_scale": (lambda x: 0 <= x < math.inf, "it must be a number, 0 or above. Set margin_scale: 0.0."),
}


def _unknown(name: str) -> str:
    if name in _REFERENCE_BASED:
        return (
            f"loss_type is {name!r}, which compares with a reference model; this trainer has none. Set method: dpo to "
            "train it with trl's DPOTrainer on the same data."
        )
    if name in ("simpo", "dpo"):
        change = "loss_type: sigmoid" if name == "simpo" else "method: dpo"
        return f"loss_type is {name!r}, which is the name of a method, not of a loss. Set {change}."
    near = difflib.get_close_matches(name, LOSSES, n=2, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"loss_type is {name!r}; it must be one of {', '.join(LOSSES)}.{meant}"


def _weight_problems(args: "SimPOConfig", names: list[str]) -> list[str]:
    weights = args.loss_weights
    if weights is None:
        return []
    if len(weights) != len(names):
        return [f"loss_weights has {len(weights)} numbers and loss_type {len(names)} names; give one for each."]
    if not all(0 <= weight < math.inf for weight in weights):
        return [f"loss_weights is {weights}; a weight is a number, 0 or above. Correct it."]
    if not any(weights):
        return [f"loss_weights is {weights}, which leaves nothing to train on. Raise one."]
    return []


def loss_warnings(args: "SimPOConfig") -> list[str]:
    """What a user should know of settings that are possible but hardly meant."""
    names = loss_names(args)
    which = f"the loss {names[0]}" if len(names) == 1 else f"any of the losses {', '.join(names)}"
    used = {setting for name in names for setting in LOSSES[name].uses}
    warnings = [
        f"{name}={value} has no effect on {which}. Leave it out."
        for name, value in _given(args).items()
        if name not in used and value != 0
    ]
    if args.margin_scale and "gamma_beta_ratio" not in used:
        warnings.append(f"margin_scale={args.margin_scale} has no effect on {which}, which knows no target margin.")
    if not args.average_log_prob and all(LOSSES[name].compares == "average" for name in names):
        warnings.append(f"average_log_prob=False has no effect on {which}, which is defined by averages. Leave it out.")
    return warnings + _size_warnings(args, names)


def _size_warnings(args: "SimPOConfig", names: list[str]) -> list[str]:
    warnings = []
    ratio, beta = args.gamma_beta_ratio, args.beta
    with_target = [name for name in names if "gamma_beta_ratio" in LOSSES[name].uses]
    for name in set(names) - set(with_target):
        usual = LOSSES[name].defaults.get("beta")
        if beta and usual and not usual / 10 <= beta <= usual * 10:
            warnings.append(f"beta={beta} is far from what the loss {name} is used with, {usual}. Leave it out.")
    if not with_target or not args.average_log_prob:
        return warnings
    if beta is not None and beta < 1:
        warnings.append(
            f"beta={beta} is DPO-sized. SimPO compares log-probabilities per token and uses beta 2.0 to 10."
        )
    if ratio is not None and ratio > 1:
        divisor = beta or DEFAULTS["beta"] or 1.0
        warnings.append(
            f"gamma_beta_ratio={ratio} asks for {ratio} nats per token between the answers; the paper uses 0.1 to 0.8. If "
            f"the value is gamma, divide it by beta ({ratio / divisor:.3g})."
        )
    return warnings
