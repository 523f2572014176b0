"""Masks of rows that hold several answers, against a rule that is written out token by token."""

import pytest
import torch
from transformers import Gemma2Config, Lfm2Config, LlamaConfig, MistralConfig, Qwen2Config

from models import random_pairs
from simpo_trainer.attention import MaskPlan
from simpo_trainer.batching import PairCollator

PAIRS = random_pairs(5)


def sees(batch, row, q, k, window):
    """Whether position q of a row may see position k, by the meaning of the layout."""
    if q == k:
        return True
    prompt, branch, position = (batch[name][row] for name in ("prompt_index", "branch", "position_ids"))
    if prompt[q] < 0 or prompt[q] != prompt[k] or k > q:
        return False
    if branch[k] not in (0, branch[q]):
        return False
    return window is None or position[q] - position[k] < window


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_position_sees_its_prompt_and_its_own_answer(layout, window, dtype):
    batch = PairCollator(layout=layout)(PAIRS)
    mask = MaskPlan({"": window}).masks(batch["prompt_index"], batch["branch"], batch["position_ids"], dtype)
    rows, width = batch["input_ids"].shape
    assert mask.shape == (rows, 1, width, width) and mask.dtype == dtype
    for row in range(rows):
        for q in range(width):
            seen = [sees(batch, row, q, k, window) for k in range(width)]
            assert (mask[row, 0, q] == 0).tolist() == seen
            assert set(mask[row, 0, q].tolist()) <= {0.0, torch.finfo(dtype).min}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LlamaConfig(), {"": None}),
        (MistralConfig(sliding_window=7), {"": 7}),
        (MistralConfig(sliding_window=None), {"": None}),
        (Qwen2Config(sliding_window=7, use_sliding_window=False), {"full_attention": None}),
        (Gemma2Config(sliding_window=7), {"full_attention": None, "sliding_attention": 7}),
    ],
)
def test_the_masks_that_a_model_takes(config, windows):
    assert MaskPlan.from_config(config) == MaskPlan(windows)


def test_layers_that_no_mask_describes():
    assert MaskPlan.from_config(Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2)) is None


def test_one_mask_for_all_layers_where_they_are_alike():
    assert MaskPlan({"full_attention": None}).for_all_layers() == MaskPlan({"": None})
    assert MaskPlan({"full_attention": None, "sliding_attention": 7}).for_all_layers() is None
