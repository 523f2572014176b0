"""Layouts and attention on a card: what padded rows of the same weights give there, in values and gradients."""

import pytest
import torch

from models import random_pairs, tiny_model
from simpo_trainer.batches.batch import PairCollator, on_device
from simpo_trainer.environment import has_package
from simpo_trainer.model.layout_choice import choose_layout
from simpo_trainer.model.scoring import add_scoring_forward, score_answers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAIRS = random_pairs(6, seed=2)
# Layout and attention. The model has heads of 32 numbers, because kernels refuse smaller ones.
WAYS = [
    ("shared_prefix", "sdpa"),
    ("packed", "sdpa"),
    ("shared_prefix", "flex_attention"),
    ("packed", "flex_attention"),
    ("packed", "flash_attention_2"),
]


def scored(layout, attention, bf16):
    """Average log-probabilities of all answers, and the gradients of their sum."""
    if attention == "flash_attention_2" and not has_package("flash_attn"):
        pytest.skip("flash_attn is not installed")
    model = tiny_model(hidden_size=128).to(DEVICE).eval()
    model.set_attn_implementation(attention)
    add_scoring_forward(model)
    # Flash attention has no kernel for float32, in which the choice is made otherwise.
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=attention == "flash_attention_2"):
        layout, reason = choose_layout(model, layout)
    batch = on_device(PairCollator(layout=layout)(PAIRS), DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        average = score_answers(model, batch).average
    average.sum().backward()
    return average.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), reason


@pytest.mark.parametrize(("layout", "attention"), [way for way in WAYS if way[1] != "flash_attention_2"])
def test_in_float32_as_padded_rows(layout, attention):
    values, gradients, _ = scored(layout, attention, bf16=False)
    expected, slopes, _ = scored("padded", "sdpa", bf16=False)
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3)
    assert (gradients - slopes).norm() < 1e-2 * slopes.norm()


@pytest.mark.parametrize(("layout", "attention"), WAYS)
def test_in_bfloat16_no_further_off_than_padded_rows(layout, attention):
    values, gradients, reason = scored(layout, attention, bf16=True)
    exact, slopes, _ = scored("padded", "sdpa", bf16=False)
    padded, padded_slopes, _ = scored("padded", "sdpa", bf16=True)
    assert (values - exact).norm() < 3 * (padded - exact).norm(), reason
    assert (gradients - slopes).norm() < 3 * (padded_slopes - slopes).norm(), reason
