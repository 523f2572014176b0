"""Losses against closed forms: with gamma = beta * gamma_beta_ratio, the loss is softplus(gamma - beta * delta)."""

import math

import pytest
import torch
from torch import Tensor

from simpo_trainer.losses import LOSSES, hinge_loss, simpo_loss

BOTH = pytest.mark.parametrize("loss", [simpo_loss, hinge_loss])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logps(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def slope(loss, delta: float, **settings) -> tuple[float, float]:
    """Derivatives of the loss of one pair with respect to its chosen and its rejected average log-probability."""
    chosen, rejected = logps(delta - 1.5).requires_grad_(), logps(-1.5).requires_grad_()
    loss(chosen, rejected, **settings).sum().backward()
    return chosen.grad.item(), rejected.grad.item()


@pytest.mark.parametrize(
    ("beta", "smoothing", "expected"),
    [
        (2.0, 0.0, 0.1839),  # delta 1.3, z 0.8: softplus(-1.6)
        (2.0, 0.3, 0.6639),  # 0.7 * softplus(-1.6) + 0.3 * softplus(1.6)
        (2.5, 0.0, 0.1269),  # softplus(-2.0)
    ],
)
def test_worked_numbers(beta, smoothing, expected):
    loss = simpo_loss(logps(-1.2), logps(-2.5), beta=beta, gamma_beta_ratio=0.5, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=5e-5)


def test_worked_number_with_the_sft_term():
    """Preference loss 0.1269 plus 0.1 times the chosen answer's negative log-likelihood per token, 1.2."""
    preference = simpo_loss(logps(-1.2), logps(-2.5), beta=2.5, gamma_beta_ratio=0.5)
    assert preference.item() + 0.1 * 1.2 == pytest.approx(0.2469, abs=5e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("ratio", [0.0, 0.55])
@pytest.mark.parametrize("delta", [-1.3, 0.0, 0.2, 3.0])
def test_sigmoid_closed_form(delta, ratio, beta):
    loss = simpo_loss(logps(delta - 2), logps(-2.0), beta=beta, gamma_beta_ratio=ratio)
    assert loss.item() == pytest.approx(softplus(beta * ratio - beta * delta), rel=1e-12)


def test_equal_answers_cost_softplus_of_gamma_and_ln_2_only_without_a_margin():
    """DPO's rule of thumb that training starts at 0.693 does not hold here."""
    same = logps(-1.7)
    assert simpo_loss(same, same, beta=2.0, gamma_beta_ratio=0.5).item() == pytest.approx(softplus(1.0))
    assert simpo_loss(same, same, beta=2.0, gamma_beta_ratio=0.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
@pytest.mark.parametrize("delta", [-0.7, 0.1, 1.9])
def test_smoothing_mixes_the_losses_of_both_labellings(delta, smoothing):
    """A share of the pairs counts as labelled the wrong way round: the loss of -z."""
    loss = simpo_loss(logps(delta), logps(0.0), beta=3.0, gamma_beta_ratio=0.4, label_smoothing=smoothing)
    z = delta - 0.4
    assert loss.item() == pytest.approx((1 - smoothing) * softplus(-3 * z) + smoothing * softplus(3 * z), rel=1e-12)


@pytest.mark.parametrize("delta", [-1.3, 0.0, 0.5, 0.99, 1.01, 3.0])
def test_hinge_closed_form_and_slope(delta):
    """relu(1 - beta*z): slope -beta below z = 1/beta, which is delta = 1 here, and 0 above."""
    loss = hinge_loss(logps(delta), logps(0.0), beta=2.0, gamma_beta_ratio=0.5)
    assert loss.item() == pytest.approx(max(0.0, 1 - 2 * (delta - 0.5)), abs=1e-12)
    expected = -2.0 if delta < 1 else 0.0
    assert slope(hinge_loss, delta, beta=2.0, gamma_beta_ratio=0.5) == (expected, -expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("delta", [-1.3, 0.0, 0.8, 3.0])
def test_sigmoid_slope(delta, smoothing):
    """dL/dz = -beta*sigmoid(-beta*z)*(1-eps) + beta*sigmoid(beta*z)*eps; z rises with chosen, falls with rejected."""
    found = slope(simpo_loss, delta, beta=2.5, gamma_beta_ratio=0.3, label_smoothing=smoothing)
    scaled = 2.5 * (delta - 0.3)
    expected = -2.5 * sigmoid(-scaled) * (1 - smoothing) + 2.5 * sigmoid(scaled) * smoothing
    assert found == pytest.approx((expected, -expected), rel=1e-12)


@BOTH
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(loss, smoothing):
    torch.manual_seed(0)
    chosen, rejected, ratio = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def function(chosen, rejected, ratio):
        return loss(chosen, rejected, beta=2.0, gamma_beta_ratio=ratio, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(function, (chosen, rejected, ratio))


@BOTH
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("delta", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_differences_stay_finite(loss, delta, dtype, smoothing):
    """Far out the loss is linear, and its slope the share of labels on the wrong side times beta."""
    chosen = logps(delta, dtype=dtype).requires_grad_()
    value = loss(chosen, logps(0.0, dtype=dtype), beta=2.0, gamma_beta_ratio=0.5, label_smoothing=smoothing)
    value.sum().backward()
    if loss is hinge_loss:
        smoothing = 0.0
    share = 1 - smoothing if delta < 0 else smoothing
    assert value.item() == pytest.approx(share * 2 * abs(delta), rel=0.03, abs=0.5)
    assert abs(chosen.grad.item()) == pytest.approx(2 * share, rel=0.01, abs=1e-6)


@BOTH
def test_a_margin_per_pair_is_the_same_as_pair_by_pair(loss):
    chosen, rejected, ratios = logps(-1.0, -1.2, -0.3), logps(-1.1, -2.5, -0.9), logps(0.0, 0.5, 1.5)
    together = loss(chosen, rejected, beta=2.0, gamma_beta_ratio=ratios)
    alone = [
        loss(chosen[i : i + 1], rejected[i : i + 1], beta=2.0, gamma_beta_ratio=float(ratio))
        for i, ratio in enumerate(ratios)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_loss_per_pair_in_the_dtype_of_the_inputs(loss, dtype):
    value = loss(logps(-1.0, -2.0, dtype=dtype), logps(-2.0, -1.0, dtype=dtype), beta=2.0, gamma_beta_ratio=0.5)
    assert value.shape == (2,) and value.dtype == dtype
    assert value[0] < value[1]


def test_smoothing_has_no_effect_on_hinge():
    pair = logps(-1.2, -0.2), logps(-1.5, -2.5)
    plain = hinge_loss(*pair, beta=2.0, gamma_beta_ratio=0.5)
    smoothed = hinge_loss(*pair, beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.4)
    assert torch.equal(plain, smoothed)


def test_names_that_loss_type_knows():
    assert LOSSES == {"sigmoid": simpo_loss, "hinge": hinge_loss}
