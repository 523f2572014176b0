"""Losses against closed forms: with gamma = beta * gamma_beta_ratio, SimPO's is softplus(gamma - beta * delta)."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from models import random_pairs, tiny_model, word_tokenizer
from reference import in_float64, score_pairs
from simpo_trainer.loss.losses import DEFAULTS, LOSSES, hinge_loss, simpo_loss

every_loss = pytest.mark.parametrize("name", LOSSES)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logps(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def loss_of(name: str, chosen: Tensor, rejected: Tensor, **settings) -> Tensor:
    """A loss by name, with its own defaults where `settings` say nothing."""
    loss = LOSSES[name]
    values = DEFAULTS | loss.defaults | settings
    return loss.function(chosen, rejected, **{key: values[key] for key in loss.uses})


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


# ---- The family ----

# At a(chosen) = -1.2, a(rejected) = -2.5, delta 1.3: settings and the loss by hand.
BY_HAND = {
    "ipo": ({"beta": 1.0}, (1.3 - 0.5) ** 2),
    "squared": ({"beta": 2.0, "gamma_beta_ratio": 0.5}, (2.6 - 1.0) ** 2),
    "robust": (
        {"beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.1},
        (0.9 * softplus(-1.6) - 0.1 * softplus(1.6)) / 0.8,
    ),
    "discopop": (
        {"beta": 0.5, "gamma_beta_ratio": 0.5, "discopop_tau": 0.5},  # l = 0.4, l/tau = 0.8
        softplus(-0.4) * (1 - sigmoid(0.8)) + math.exp(-0.4) * sigmoid(0.8),
    ),
    "slic": ({"slic_delta": 2.0}, 0.7),
    "cpo": ({"beta": 0.1}, softplus(-0.13)),
    "orpo": (
        {"beta": 0.1},
        0.1
        * softplus(math.log(math.exp(-2.5) / (1 - math.exp(-2.5))) - math.log(math.exp(-1.2) / (1 - math.exp(-1.2)))),
    ),
    "alphapo": (
        {"beta": 2.5, "gamma_beta_ratio": 0.04, "alpha": 0.25},
        softplus(0.1 - 2.5 * ((1 - math.exp(0.3)) / 0.25 - (1 - math.exp(0.625)) / 0.25)),
    ),
    "simper": ({}, math.exp(-2.5) - math.exp(-1.2)),
    "rrhf": ({}, 0.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    settings, expected = BY_HAND[name]
    assert loss_of(name, logps(-1.2), logps(-2.5), **settings).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


# d loss / d chosen at the same point; that with respect to rejected is its negative where a loss reads delta alone.
SLOPES_BY_HAND = {
    "ipo": (2 * 0.8, True),
    "squared": (2 * 2.0 * 1.6, True),
    "robust": ((-0.9 * 2 * sigmoid(-1.6) - 0.1 * 2 * sigmoid(1.6)) / 0.8, True),
    "slic": (-1.0, True),
    "cpo": (-0.1 * sigmoid(-0.13), True),
    "simper": (-math.exp(-1.2), False),
    "rrhf": (0.0, True),
}


@pytest.mark.parametrize("name", SLOPES_BY_HAND)
def test_slopes_by_hand(name):
    settings, _ = BY_HAND[name]
    expected, by_delta = SLOPES_BY_HAND[name]
    chosen, rejected = logps(-1.2).requires_grad_(), logps(-2.5).requires_grad_()
    loss_of(name, chosen, rejected, **settings).sum().backward()
    assert chosen.grad.item() == pytest.approx(expected, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(-expected if by_delta else math.exp(-2.5), rel=1e-12)


@pytest.mark.parametrize(("reward", "target", "expected"), [(1.5, 1.0, 0.25), (2.0, 1.0, 1.0)])
def test_squared_margins_of_the_exercises(reward, target, expected):
    loss = loss_of("squared", logps(reward), logps(0.0), beta=1.0, gamma_beta_ratio=target)
    assert loss.item() == pytest.approx(expected)
    given = loss_of("squared", logps(reward), logps(0.0), beta=1.0, gamma_beta_ratio=7.0, squared_target=target)
    assert given.item() == pytest.approx(expected)


def test_slope_of_the_exercises():
    reward = logps(1.8).requires_grad_()
    loss_of("squared", reward, logps(0.0), beta=1.0, gamma_beta_ratio=2.0).sum().backward()
    assert reward.grad.item() == pytest.approx(-0.4)


def test_rrhf_is_the_lead_of_the_rejected_answer():
    assert loss_of("rrhf", logps(-2.5, -1.2), logps(-1.2, -1.2)).tolist() == pytest.approx([1.3, 0.0])


def test_robust_is_unbiased():
    """Averaged over labels of which a share is swapped, it is the SimPO loss of the right ones."""
    settings = {"beta": 2.0, "gamma_beta_ratio": 0.0}
    chosen, rejected = logps(-1.2), logps(-2.5)
    right, swapped = (
        loss_of("robust", *pair, **settings, label_smoothing=0.2) for pair in ((chosen, rejected), (rejected, chosen))
    )
    expected = simpo_loss(chosen, rejected, **settings).item()
    assert (0.8 * right + 0.2 * swapped).item() == pytest.approx(expected, rel=1e-12)


def test_alphapo_without_alpha_is_simpo():
    pair = logps(-1.2, -0.3), logps(-2.5, -1.9)
    settings = {"beta": 2.5, "gamma_beta_ratio": 0.3}
    expected = simpo_loss(*pair, **settings)
    torch.testing.assert_close(loss_of("alphapo", *pair, alpha=0.0, **settings), expected, rtol=0, atol=0)
    torch.testing.assert_close(loss_of("alphapo", *pair, alpha=1e-9, **settings), expected, rtol=1e-7, atol=0)


@every_loss
def test_gradcheck(name):
    torch.manual_seed(0)
    chosen, rejected = (-torch.rand(6, dtype=torch.float64) - 0.3 for _ in range(2))
    ratio = torch.rand(6, dtype=torch.float64)

    def function(chosen, rejected, ratio):
        return loss_of(name, chosen, rejected, gamma_beta_ratio=ratio, label_smoothing=0.2)

    inputs = chosen.requires_grad_(), rejected.requires_grad_(), ratio.requires_grad_()
    uses_margin = "gamma_beta_ratio" in LOSSES[name].uses
    assert torch.autograd.gradcheck(
        function if uses_margin else lambda c, r: function(c, r, ratio), inputs[: 2 + uses_margin]
    )


# Unbounded by nature: exponential in |a|.
_EXPONENTIAL = {"alphapo"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["chosen", "rejected", "both likely", "equal"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in _EXPONENTIAL])
def test_extremes_stay_finite(name, side, dtype):
    far, near = (-1e-6, -1e-6) if side == "both likely" else (-1e4, -0.5)
    values = {"chosen": (near, far), "rejected": (far, near), "both likely": (near, far), "equal": (near, near)}[side]
    chosen, rejected = (logps(value, dtype=dtype).requires_grad_() for value in values)
    loss = loss_of(name, chosen, rejected)
    loss.sum().backward()
    assert loss.isfinite().all() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alphapo_is_finite_as_far_as_answers_go(dtype):
    """At 100 nats per token its reward is -2.9e11; float32 ends at 3e38."""
    chosen, rejected = logps(-0.5, dtype=dtype).requires_grad_(), logps(-100.0, dtype=dtype).requires_grad_()
    for pair in ((chosen, rejected), (rejected, chosen)):
        loss = loss_of("alphapo", *pair)
        loss.sum().backward()
        assert loss.isfinite().all() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("delta", [-1e4, -100.0, 100.0, 1e4])
def test_far_out_simpo_is_linear(delta, dtype, smoothing):
    """Its slope is the share of labels on the wrong side times beta."""
    chosen = logps(delta, dtype=dtype).requires_grad_()
    value = simpo_loss(chosen, logps(0.0, dtype=dtype), beta=2.0, gamma_beta_ratio=0.5, label_smoothing=smoothing)
    value.sum().backward()
    share = 1 - smoothing if delta < 0 else smoothing
    assert value.item() == pytest.approx(share * 2 * abs(delta), rel=0.03, abs=0.5)
    assert abs(chosen.grad.item()) == pytest.approx(2 * share, rel=0.01, abs=1e-6)


# Those that fall again, or rise, beyond their target.
_NOT_MONOTONE = {"ipo", "squared", "discopop"}


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in _NOT_MONOTONE])
def test_a_better_chosen_and_a_worse_rejected_answer_never_cost_more(name):
    grid = torch.linspace(-6, -0.05, 60, dtype=torch.float64)
    fixed = torch.full_like(grid, -2.0)
    by_chosen, by_rejected = loss_of(name, grid, fixed), loss_of(name, fixed, grid)
    assert (by_chosen.diff() <= 1e-12).all() and (by_rejected.diff() >= -1e-12).all()
    assert by_chosen[0] > by_chosen[-1] and by_rejected[0] < by_rejected[-1]


@pytest.mark.parametrize("name", [name for name in LOSSES if "gamma_beta_ratio" in LOSSES[name].uses])
def test_a_margin_per_pair_is_the_same_as_pair_by_pair(name):
    chosen, rejected, ratios = logps(-1.0, -1.2, -0.3), logps(-1.1, -2.5, -0.9), logps(0.0, 0.5, 1.5)
    together = loss_of(name, chosen, rejected, gamma_beta_ratio=ratios)
    alone = [
        loss_of(name, chosen[i : i + 1], rejected[i : i + 1], gamma_beta_ratio=float(ratio))
        for i, ratio in enumerate(ratios)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-15, atol=0)
    assert len(set(together.tolist())) == 3


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_loss_per_pair_in_the_dtype_of_the_inputs(name, dtype):
    value = loss_of(name, logps(-1.0, -2.0, dtype=dtype), logps(-2.0, -1.0, dtype=dtype))
    assert value.shape == (2,) and value.dtype == dtype
    assert value[0] < value[1]


@every_loss
def test_every_loss_says_what_it_is(name):
    loss = LOSSES[name]
    assert loss.formula and (loss.source.replace(".", "").isdigit() or "no paper" in loss.source)
    assert set(loss.uses) <= set(DEFAULTS) and set(loss.defaults) <= set(loss.uses)
    assert (
        loss.source in (loss.function.__doc__ or "")
        or "not the paper's loss" in loss.function.__doc__
        or name == "hinge"
    )


# ---- The same in trl ----

PAIRS = -torch.rand(7, dtype=torch.float64) * 3 - 0.1, -torch.rand(7, dtype=torch.float64) * 3 - 0.1


def trl_cpo(loss_type: str, beta: float, **settings: float) -> Tensor:
    stub = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), loss_type=loss_type, beta=beta)
    for name in ("alpha", "simpo_gamma", "label_smoothing"):
        setattr(stub, name, settings.get(name, 0.0))
    return CPOTrainer.cpo_loss(stub, *PAIRS)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_and_alphapo_are_those_of_trl(smoothing):
    settings = {"simpo_gamma": 1.25, "label_smoothing": smoothing}
    found = loss_of("sigmoid", *PAIRS, beta=2.5, gamma_beta_ratio=0.5, label_smoothing=smoothing)
    torch.testing.assert_close(found, trl_cpo("simpo", 2.5, **settings))
    found = loss_of("alphapo", *PAIRS, beta=2.5, gamma_beta_ratio=0.5, alpha=0.3, label_smoothing=smoothing)
    torch.testing.assert_close(found, trl_cpo("simpo", 2.5, alpha=0.3, **settings))


@pytest.mark.parametrize(
    ("name", "theirs", "settings"),
    [
        ("cpo", "sigmoid", {}),
        ("cpo", "sigmoid", {"label_smoothing": 0.3}),
        ("hinge", "hinge", {"gamma_beta_ratio": 0.0}),
        ("ipo", "ipo", {}),
    ],
)
def test_losses_of_trls_cpo_trainer(name, theirs, settings):
    smoothing = settings.get("label_smoothing", 0.0)
    torch.testing.assert_close(
        loss_of(name, *PAIRS, beta=0.3, **settings), trl_cpo(theirs, 0.3, label_smoothing=smoothing)
    )


def test_the_odds_ratio_of_trls_orpo_trainer():
    """Its term is subtracted from the likelihood term, and computed in float32."""
    stub = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.3)
    theirs = ORPOTrainer.odds_ratio_loss(stub, *PAIRS)[0]
    torch.testing.assert_close(loss_of("orpo", *PAIRS, beta=0.3), -theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "discopop"])
def test_losses_of_trls_dpo_trainer_without_a_reference(name, tmp_path):
    """A reference that finds every answer certain says nothing; their ipo compares averages, the others sums."""
    rows = random_pairs(3)
    settings = {"label_smoothing": 0.2 if name == "robust" else 0.0, "beta": 0.3, "discopop_tau": 0.4}
    theirs = DPOTrainer(
        tiny_model(),
        tiny_model(seed=1),
        args=DPOConfig(str(tmp_path), loss_type=[name], use_cpu=True, report_to="none", bf16=False, **settings),
        train_dataset=Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": "w5"}]),
        processing_class=word_tokenizer(),
    )
    theirs.precompute_ref_logps = True
    inputs = theirs.data_collator([{**row, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} for row in rows])
    expected = theirs.compute_loss(theirs.model, inputs).item()
    scored = score_pairs(in_float64(tiny_model()), rows)
    key = "average" if name == "ipo" else "sum"
    sides = [torch.stack([getattr(answer, key) for answer in side]) for side in (scored.chosen, scored.rejected)]
    assert loss_of(name, *sides, gamma_beta_ratio=0.0, **settings).mean().item() == pytest.approx(expected, rel=1e-5)
