"""Masks of rows that hold several answers, against a rule that is written out token by token."""

import shutil

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import Gemma2Config, Lfm2Config, LlamaConfig, MistralConfig, Qwen2Config

from models import random_pairs
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.model import attention
from simpo_trainer.model.attention import MaskPlan, flex_width

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


def test_layers_whose_window_no_row_outgrows_have_one_mask():
    batch = PairCollator(layout="packed")(PAIRS)
    plan = MaskPlan({"full_attention": None, "sliding_attention": 1000})
    masks = plan.masks(batch["prompt_index"], batch["branch"], batch["position_ids"], torch.float32)
    assert masks["full_attention"] is masks["sliding_attention"]


# ---- Flex attention ----


def long_rows(layout):
    """Fields of rows several blocks long, with prompts and answers that fill blocks and padding that fills one."""
    pairs = [
        {"prompt_ids": [1] * 300, "chosen_ids": [5] * 290, "rejected_ids": [6] * 40},
        {"prompt_ids": [1] * 5, "chosen_ids": [5] * 200, "rejected_ids": [6] * 150},
    ]
    batch = PairCollator(layout=layout)(pairs)
    width = flex_width(batch["input_ids"].shape[1]) + 128
    padding = {"prompt_index": -1, "branch": 0, "position_ids": 0}
    return tuple(F.pad(batch[name], (0, width - batch[name].shape[1]), value=value) for name, value in padding.items())


@pytest.mark.parametrize("at_once", [1, 2**24])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_blocks_are_those_of_the_mask(layout, window, at_once, monkeypatch):
    """Found in parts or at once, they are what torch reads off the dense mask."""
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    fields = long_rows(layout)
    seen = MaskPlan({"": window}).masks(*fields, torch.float32)[:, 0] == 0
    expected = create_block_mask(
        lambda b, h, q, k: seen[b, q, k], len(seen), None, seen.shape[1], seen.shape[2], device="cpu"
    )
    found = MaskPlan({"": window}).block_masks(*fields)
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    assert bool((expected.full_kv_num_blocks > 0).any()) == (window is None)
    for field in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_compiled_flex_attention_equals_the_dense_mask(layout, window):
    """The kernels skip what the block mask leaves out; uncompiled, all of it is run."""
    fields = long_rows(layout)
    rows, width = fields[0].shape
    query, key, value = torch.randn(3, rows, 2, width, 16, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=MaskPlan({"": window}).masks(*fields, torch.float32)
    )
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    found = compiled(query, key, value, block_mask=MaskPlan({"": window}).block_masks(*fields))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_flex_attention_gets_masks_by_kind_of_layer():
    masks = MaskPlan({"full_attention": None, "sliding_attention": 100}).block_masks(*long_rows("packed"))
    assert masks["full_attention"].sparsity() < masks["sliding_attention"].sparsity()


def test_rows_for_flex_attention_come_in_few_widths():
    widths = range(1, 2**15)
    found = [flex_width(width) for width in widths]
    assert all(new >= old and new % 128 == 0 for new, old in zip(found, widths, strict=True))
    assert all(new < 1.125 * old + 128 for new, old in zip(found, widths, strict=True))
    assert len(set(found)) == 8 * 6
    assert flex_width(2049) == 2304


def test_a_window_one_short_of_the_row_hides_its_first_token():
    """A wider one is left out, as it hides nothing."""
    one, positions = torch.zeros(1, 5, dtype=torch.long), torch.arange(5)[None]
    for window, hidden in ((4, 1), (5, 0), (6, 0)):
        mask = MaskPlan({"": window}).masks(one, one, positions, torch.float32)[0, 0]
        assert int((mask.tril() < 0).sum()) == hidden
