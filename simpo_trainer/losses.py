"""Per-pair preference losses: pure functions of average log-probabilities, no device, no reduction, no settings object.

Notation, as in SimPO (arXiv 2405.14734): a(y) is the average log-probability of answer y in nats per token,
delta = a(chosen) - a(rejected), and z = delta - gamma_beta_ratio is what is left of delta above the target margin.
"""

from collections.abc import Callable

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

    SimPO (arXiv 2405.14734) Eq. 6, with `z = chosen - rejected - gamma/beta`; eps = `label_smoothing` is the share of
    pairs whose labels are taken to be swapped, as in cDPO. Without smoothing the gradient with respect to z is
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


def hinge_loss(
    chosen_average_logps: Tensor,
    rejected_average_logps: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float | Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Hinge form of SimPO, of each pair: `relu(1 - beta*z)`, as in the official implementation.

    Same arguments and result as :func:`simpo_loss`. The gradient with respect to z is `-beta` where `z < 1/beta` and 0
    beyond. `label_smoothing` has no effect here; it is taken so that all losses share one signature.
    """
    del label_smoothing
    scaled = beta * (chosen_average_logps - rejected_average_logps - gamma_beta_ratio)
    return torch.relu(1 - scaled)


# The names that `loss_type` knows. A new loss is a function above, a line here and a closed-form test.
LOSSES: dict[str, Callable[..., Tensor]] = {"sigmoid": simpo_loss, "hinge": hinge_loss}
