"""Per-pair preference losses: pure functions of log-probabilities, no device, no reduction, no settings object.

Notation: s(y) is the log-probability of answer y in nats, a(y) = s(y) / |y| is its average per token, and delta is
chosen - rejected of the one that a loss compares. Every function takes the two log-probabilities, (N,) each, and its
settings by name, and returns one loss per pair, (N,), in the dtype of the inputs. `gamma_beta_ratio` may be one number
or one per pair.

A new loss is a function below, a line in `LOSSES` and a test in test_losses.py. For a loss of your own, write a
subclass of `SimPOTrainer` with its own `pair_loss`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo_loss(
    chosen_average_logps: Tensor,
    rejected_average_logps: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float | Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SimPO loss of each pair: `-logsigmoid(beta*z) * (1-eps) - logsigmoid(-beta*z) * eps`.

    SimPO (arXiv 2405.14734) Eq. 6, with `z = chosen - rejected - gamma/beta`; eps = `label_smoothing` is the assumed
    share of pairs with swapped labels, as in cDPO. Without smoothing the gradient with respect to z is
    `-beta * sigmoid(-beta*z)`.

    Args:
        chosen_average_logps: average log-probability of each chosen answer, nats per token, shape (N,).
        rejected_average_logps: the same of each rejected answer, shape (N,).
        beta: scale of the reward, > 0 (2.0 to 10 in the paper's settings).
        gamma_beta_ratio: target margin gamma/beta in nats per token; one number, or one per pair of shape (N,).
        label_smoothing: eps in [0, 0.5].

    Returns:
        One loss per pair, shape (N,), in the dtype of the inputs.
    """
    scaled = beta * (chosen_average_logps - rejected_average_logps - gamma_beta_ratio)
    loss = -F.logsigmoid(scaled)
    if label_smoothing:
        loss = loss * (1 - label_smoothing) - F.logsigmoid(-scaled) * label_smoothing
    return loss


def hinge_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float | Tensor) -> Tensor:
    """Hinge form of SimPO: `relu(1 - beta*z)`, as in the official implementation.

    The gradient with respect to z is `-beta` where `z < 1/beta` and 0 beyond.
    """
    return torch.relu(1 - beta * (chosen - rejected - gamma_beta_ratio))


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """IPO without reference and by length: `(delta - 1/(2*beta))^2`.

    IPO (arXiv 2310.12036) Eq. 17, where beta is called tau. There delta is a difference of log-ratios to a reference
    model; here, as in trl's `CPOTrainer`, there is none. It compares averages, because with sums the target would
    depend on length. The target margin is `1/(2*beta)`.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def squared_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float | Tensor, squared_target: float | None
) -> Tensor:
    """Squared distance of the reward margin from its target: `(beta*delta - target)^2`.

    The target is `beta * gamma_beta_ratio` unless `squared_target` is set. Some exercises teach SimPO with this loss.
    It is not the paper's loss, and it grows again where the margin exceeds the target.
    """
    target = beta * gamma_beta_ratio if squared_target is None else squared_target
    return (beta * (chosen - rejected) - target).square()


def robust_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float | Tensor, label_smoothing: float
) -> Tensor:
    """SimPO unbiased under swapped labels: `(-(1-eps)*logsigmoid(beta*z) + eps*logsigmoid(-beta*z)) / (1-2*eps)`.

    Robust DPO (arXiv 2403.00409) Eq. 12, on SimPO's reward; eps < 0.5 is the share of pairs with swapped labels. Its
    mean over such labels is the SimPO loss of the right labels. Unbounded below: it falls as `-eps*beta*z/(1-2*eps)`.
    """
    scaled = beta * (chosen - rejected - gamma_beta_ratio)
    right, swapped = F.logsigmoid(scaled), F.logsigmoid(-scaled)
    return (label_smoothing * swapped - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def discopop_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, gamma_beta_ratio: float | Tensor, discopop_tau: float
) -> Tensor:
    """The log-ratio modulated loss of DiscoPOP on SimPO's reward, l = beta*z.

    DiscoPOP (arXiv 2406.08414) Eq. 5: `-logsigmoid(l) * (1 - sigmoid(l/tau)) + exp(-l) * sigmoid(l/tau)`, here written
    so that no factor overflows. It is not convex and has a dip near l = 0, as the paper shows. tau must be below 1.
    """
    scaled = beta * (chosen - rejected - gamma_beta_ratio)
    logistic = -F.logsigmoid(scaled) * torch.sigmoid(-scaled / discopop_tau)
    return logistic + torch.exp(F.logsigmoid(scaled / discopop_tau) - scaled)


def slic_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, slic_delta: float) -> Tensor:
    """SLiC-HF's calibration: `relu(slic_delta - delta)` on log-probabilities of whole answers.

    SLiC-HF (arXiv 2305.10425) Eq. 1; the trainer adds its regulariser, the likelihood term on chosen answers.
    """
    return torch.relu(slic_delta - (chosen_logps - rejected_logps))


def cpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """CPO's preference term: `-logsigmoid(beta*delta)` on log-probabilities of whole answers.

    CPO (arXiv 2401.08417) Eq. 3; the trainer adds its second term, the likelihood term on chosen answers. Smoothing is
    that of trl's `CPOTrainer`.
    """
    return simpo_loss(chosen_logps, rejected_logps, beta=beta, gamma_beta_ratio=0.0, label_smoothing=label_smoothing)


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """ORPO's odds-ratio term: `-beta * logsigmoid(log odds(chosen) - log odds(rejected))`.

    The log odds of an answer are `a - log(1 - exp(a))`.

    ORPO (arXiv 2403.07691) Eq. 6 and 7, where beta is called lambda; the trainer adds the likelihood term.
    """
    return -beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(average: Tensor) -> Tensor:
    # Kept below 0 by the smallest step of the dtype at 1: the odds of probability 1 are infinite.
    average = average.clamp(max=-torch.finfo(average.dtype).eps)
    return average - torch.log(-torch.expm1(average))


def alphapo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float | Tensor,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """SimPO on the reward `(1 - exp(-alpha*a)) / alpha`, which is a itself if alpha is 0.

    AlphaPO (arXiv 2501.03884) Eq. 6. If alpha > 0, unlikely answers weigh more: the reward falls without bound, as
    `exp(alpha*|a|)`. If alpha < 0, unlikely answers weigh less. The margin is in the unit of that reward.
    """
    return simpo_loss(
        _shaped(chosen, alpha),
        _shaped(rejected, alpha),
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
        label_smoothing=label_smoothing,
    )


def _shaped(average: Tensor, alpha: float) -> Tensor:
    return -torch.expm1(-alpha * average) / alpha if alpha else average


def simper_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """SimPER: `exp(a(rejected)) - exp(a(chosen))`, a difference of inverse perplexities, in [-1, 1].

    SimPER (arXiv 2502.00883) Eq. 6. It has no settings.
    """
    return rejected.exp() - chosen.exp()


def rrhf_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """RRHF's ranking: `relu(a(rejected) - a(chosen))`.

    RRHF (arXiv 2304.05302) Eq. 2 for two answers; the trainer adds its second term, the likelihood of the better one.
    """
    return torch.relu(rejected - chosen)


@dataclass(frozen=True)
class Loss:
    """A built-in loss with its formula, its source and its defaults.

    Args:
        function: the loss.
        formula: the formula as text; z = delta - gamma_beta_ratio.
        source: arXiv number, or another source in words.
        compares: "average" or "sum" of log-probabilities; "either" follows `average_log_prob`.
        defaults: the defaults of its settings that differ from SimPO's.
        sft_weight: default weight of the likelihood term.
    """

    function: Callable[..., Tensor]
    formula: str
    source: str
    compares: Literal["average", "sum", "either"] = "average"
    defaults: dict[str, float] = field(default_factory=dict)
    sft_weight: float = 0.0

    @property
    def uses(self) -> tuple[str, ...]:
        """Returns the names of the settings that its function takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


# SimPO's defaults, for settings that neither the user nor the loss sets.
DEFAULTS: dict[str, float | None] = {
    "beta": 2.0,
    "gamma_beta_ratio": 0.5,
    "label_smoothing": 0.0,
    "alpha": 0.25,
    "slic_delta": 1.0,
    "discopop_tau": 0.05,
    "squared_target": None,
}

# The values of `loss_type`.
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(simpo_loss, "-logsigmoid(beta*z)", "2405.14734", "either"),
    "hinge": Loss(hinge_loss, "relu(1 - beta*z)", "2405.14734", "either"),
    # beta 1 gives the target 0.5 nats per token: SimPO's target, and one that averages can reach.
    "ipo": Loss(ipo_loss, "(delta - 1/(2*beta))^2", "2310.12036", "either", {"beta": 1.0}),
    "squared": Loss(squared_loss, "(beta*delta - target)^2", "teaching material, no paper", "either"),
    "robust": Loss(
        robust_loss,
        "(eps*logsigmoid(-beta*z) - (1-eps)*logsigmoid(beta*z)) / (1-2*eps)",
        "2403.00409",
        "either",
        {"label_smoothing": 0.1},
    ),
    "discopop": Loss(
        discopop_loss, "-logsigmoid(l)*sigmoid(-l/tau) + exp(-l)*sigmoid(l/tau), l = beta*z", "2406.08414", "either"
    ),
    "slic": Loss(slic_loss, "relu(slic_delta - delta)", "2305.10425", "sum", sft_weight=1.0),
    "cpo": Loss(cpo_loss, "-logsigmoid(beta*delta)", "2401.08417", "sum", {"beta": 0.1}, sft_weight=1.0),
    "orpo": Loss(orpo_loss, "-beta*logsigmoid(log odds ratio)", "2403.07691", defaults={"beta": 0.1}, sft_weight=1.0),
    "alphapo": Loss(
        alphapo_loss,
        "-logsigmoid(beta*(r(chosen) - r(rejected) - gamma_beta_ratio)), r = (1 - exp(-alpha*a))/alpha",
        "2501.03884",
        defaults={"beta": 2.5, "gamma_beta_ratio": 0.04},
    ),
    "simper": Loss(simper_loss, "exp(a(rejected)) - exp(a(chosen))", "2502.00883"),
    "rrhf": Loss(rrhf_loss, "relu(a(rejected) - a(chosen))", "2304.05302", sft_weight=1.0),
}
