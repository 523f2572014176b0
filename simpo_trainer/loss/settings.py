"""`LossSettings`: the settings of the preference loss, their ranges, and the problems and warnings about values."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import SimPOError, did_you_mean
from ..knobs import knob, knob_problems
from ..record.methods import METHODS
from .losses import DEFAULTS, LOSSES

# Losses of trl's DPOTrainer that need a reference model.
_REFERENCE_BASED = (
    *("bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot", "aot_pair", "aot_unpaired", "exo_pair", "nca_pair"),
    "sigmoid_norm",
)


@dataclass
class LossSettings:
    """The settings of the loss. An unset one takes the loss's default, see :class:`~simpo_trainer.loss.losses.Loss`."""

    loss_type: str | list[str] = knob(
        "sigmoid",
        f"Preference loss: {', '.join(LOSSES)}; or a list of them, whose weighted sum is trained. `simpo losses` shows "
        "what each is and uses.",
    )
    loss_weights: list[float] | None = knob(None, "Weight of each loss in a list, >= 0. Unset means 1 for each.")
    beta: float | None = knob(
        None,
        "Scale of the reward, > 0. Unset means the loss's own: 2.0 for SimPO, whose paper uses 2.0 to 10; below 1 is "
        "DPO-sized and almost surely a mistake there.",
        lambda x: 0 < x < math.inf,
        "it must be above 0. Set beta: 2.0 (SimPO's paper uses 2.0 to 10).",
    )
    gamma_beta_ratio: float | None = knob(
        None,
        "Target margin gamma/beta in nats per token, >= 0. Unset means the loss's own: 0.5 for SimPO, whose paper uses "
        "0.1 to 0.8. Other trainers take gamma itself: divide it by beta.",
        lambda x: 0 <= x < math.inf,
        "a target margin is a number, 0 or above. Set gamma_beta_ratio: 0.5 (the paper uses 0.1 to 0.8).",
    )
    label_smoothing: float | None = knob(
        None,
        "Share of pairs taken to be labelled the wrong way round, in [0, 0.5]. Unset means the loss's own: 0.1 for "
        "robust, else 0.",
        lambda x: 0 <= x <= 0.5,
        "it must lie in [0, 0.5]: above 0.5 the labels would count as swapped. Set label_smoothing: 0.0.",
    )
    alpha: float | None = knob(
        None,
        "Shape of AlphaPO's reward; 0 is SimPO's. Unset means 0.25.",
        math.isfinite,
        "it must be a number. Set alpha: 0.25.",
    )
    slic_delta: float | None = knob(
        None,
        "Margin of the slic loss in nats, >= 0. Unset means 1.",
        lambda x: 0 <= x < math.inf,
        "a margin is a number, 0 or above. Set slic_delta: 1.0.",
    )
    discopop_tau: float | None = knob(
        None,
        "Temperature of the discopop loss, between 0 and 1. Unset means 0.05.",
        lambda x: 0 < x < 1,
        "it must lie between 0 and 1, or the loss is not finite. Set it to 0.05.",
    )
    squared_target: float | None = knob(
        None,
        "Reward margin that the squared loss aims at. Unset means beta * gamma_beta_ratio.",
        math.isfinite,
        "it must be a number. Leave it out for beta * gamma_beta_ratio.",
    )
    average_log_prob: bool = knob(
        True,
        "Compare answers by log-probability per token, as SimPO does; false compares sums over tokens. Losses that "
        "always use one of the two ignore this.",
    )
    sft_weight: float | None = knob(
        None,
        "Weight of the negative log-likelihood of chosen answers added to the loss, >= 0. Unset means the loss's own: "
        "1 for slic, cpo, orpo and rrhf, else 0.",
        lambda x: 0 <= x < math.inf,
        "it must be 0 or above. Set sft_weight: 0.0.",
    )
    sft_reduction: Literal["sequence", "token", "sum"] = knob(
        "sequence",
        "Mean of the SFT term: 'sequence' takes each chosen answer's mean over its tokens, then the mean over pairs; "
        "'token' the mean over all chosen tokens of the global batch (official code: of each micro-batch); 'sum' each "
        "chosen answer's sum over its tokens, then the mean over pairs.",
    )

    @property
    def loss_names(self) -> list[str]:
        """Returns the names in `loss_type`, one or several."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @property
    def losses_in_words(self) -> str:
        """Returns the losses as words that follow "has no effect on"."""
        names = self.loss_names
        return f"the loss {names[0]}" if len(names) == 1 else f"any of the losses {', '.join(names)}"

    @property
    def given_to_losses(self) -> dict[str, float]:
        """Returns the settings in `DEFAULTS` that are set here."""
        return {name: getattr(self, name) for name in DEFAULTS if getattr(self, name) is not None}


def loss_problems(settings: LossSettings) -> list[str]:
    """Returns a sentence for each setting that cannot be used."""
    names = settings.loss_names
    problems = [_unknown(name) for name in names if name not in LOSSES]
    if not names:
        problems.append("loss_type is an empty list; it must name at least one loss. Set loss_type: sigmoid.")
    if len(set(names)) < len(names):
        problems.append(f"loss_type names a loss twice: {', '.join(names)}. Add up its weights in loss_weights.")
    problems += [*_weight_problems(settings), *knob_problems(LossSettings, settings)]
    if "robust" in names and settings.label_smoothing == 0.5:
        problems.append(
            "label_smoothing is 0.5, and the robust loss divides by 1 - 2 * label_smoothing: labels that are right "
            "half of the time teach nothing. Set label_smoothing: 0.1."
        )
    return problems


def loss_warnings(settings: LossSettings) -> list[str]:
    """Returns a sentence for each setting that can be used but is probably a mistake."""
    names, which = settings.loss_names, settings.losses_in_words
    used = {setting for name in names for setting in LOSSES[name].uses}
    warnings = [
        f"{name}={value} has no effect on {which}. Leave it out."
        for name, value in settings.given_to_losses.items()
        if name not in used and value != 0
    ]
    if not settings.average_log_prob and all(LOSSES[name].compares == "average" for name in names):
        warnings.append(f"average_log_prob=False has no effect on {which}, which is defined by averages. Leave it out.")
    return warnings + _size_warnings(settings)


def _size_warnings(settings: LossSettings) -> list[str]:
    warnings = []
    names, ratio, beta = settings.loss_names, settings.gamma_beta_ratio, settings.beta
    with_target = [name for name in names if "gamma_beta_ratio" in LOSSES[name].uses]
    for name in set(names) - set(with_target):
        usual = LOSSES[name].defaults.get("beta")
        if beta and usual and not usual / 10 <= beta <= usual * 10:
            warnings.append(f"beta={beta} is far from what the loss {name} is used with, {usual}. Leave it out.")
    if not with_target or not settings.average_log_prob:
        return warnings
    if beta is not None and beta < 1:
        warnings.append(
            f"beta={beta} is DPO-sized. SimPO compares log-probabilities per token and uses beta 2.0 to 10."
        )
    if ratio is not None and ratio > 1:
        divisor = beta or DEFAULTS["beta"] or 1.0
        warnings.append(
            f"gamma_beta_ratio={ratio} asks for {ratio} nats per token between the answers; the paper uses 0.1 to 0.8. "
            f"If the value is gamma, divide it by beta ({ratio / divisor:.3g})."
        )
    return warnings


def check_loss_names(names: list[str]) -> list[str]:
    """Returns the names, or the names of all losses if none is given.

    Raises:
        SimPOError: a name is not known.
    """
    if problems := [_unknown(name) for name in names if name not in LOSSES]:
        raise SimPOError("\n".join(problems))
    return names or list(LOSSES)


def _unknown(name: str) -> str:
    if name in _REFERENCE_BASED:
        return (
            f"loss_type is {name!r}, which compares with a reference model; this trainer has none. Set method: dpo to "
            "train it with trl's DPOTrainer on the same data."
        )
    if name in METHODS:
        change = "loss_type: sigmoid" if METHODS[name].is_simpo else f"method: {name}"
        return f"loss_type is {name!r}, which is the name of a method, not of a loss. Set {change}."
    return f"loss_type is {name!r}; it must be one of {', '.join(LOSSES)}.{did_you_mean(name, LOSSES)}"


def _weight_problems(settings: LossSettings) -> list[str]:
    names, weights = settings.loss_names, settings.loss_weights
    if weights is None:
        return []
    if len(weights) != len(names):
        return [f"loss_weights has {len(weights)} numbers and loss_type {len(names)} names; give one for each."]
    if not all(0 <= weight < math.inf for weight in weights):
        return [f"loss_weights is {weights}; a weight is a number, 0 or above. Correct it."]
    if not any(weights):
        return [f"loss_weights is {weights}, which leaves nothing to train on. Raise one."]
    return []
