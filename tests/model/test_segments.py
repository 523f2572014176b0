"""Attention piece by piece: what single sequences give, and no more products than they need."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from models import ARCHITECTURES, random_pairs, tiny_architecture, tiny_model
from reference import assert_scored_as_single_sequences, in_float64
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.model import segments
from simpo_trainer.model.attached import Scoring, replace_scoring
from simpo_trainer.model.attention import MaskPlan
from simpo_trainer.model.scoring import add_scoring_forward, score_answers
from simpo_trainer.model.segments import SEGMENT_ATTENTION, SegmentPlan

# A prompt of one token, answers of one token, sides of very uneven length.
PAIRS = [
    {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [5, 6, 7, 8, 9, 10, 11, 2]},
    {"prompt_ids": [1, *range(20, 40)], "chosen_ids": [5, 2], "rejected_ids": [2]},
    *random_pairs(2, seed=3),
]
PACKED = PairCollator(layout="packed")
# Gemma 2 caps its attention logits, which SDPA cannot.
SDPA = [name for name in ARCHITECTURES if name != "gemma2"]


def in_segments(model):
    """The model, prepared to score packed rows piece by piece."""
    add_scoring_forward(model)
    model.set_attn_implementation(SEGMENT_ATTENTION)
    replace_scoring(model, Scoring(SegmentPlan(MaskPlan.from_config(model.config).windows)))
    return model.eval()


def assert_scores_as_single_sequences(model, slow):
    found = score_answers(model, PACKED(PAIRS)).average
    assert_scored_as_single_sequences(model, slow, PAIRS, found)


@pytest.mark.parametrize("name", SDPA)
def test_values_and_gradients_are_those_of_single_sequences(name):
    model = in_segments(tiny_architecture(name))
    assert_scores_as_single_sequences(model, in_float64(model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gpt-neox"])
def test_gradient_checkpointing(name, reentrant):
    model = in_segments(tiny_architecture(name))
    slow = in_float64(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_scores_as_single_sequences(model.train(), slow)


def test_no_piece_attends_to_more_than_it_may_see(monkeypatch):
    """Every prompt once, to itself; every answer to its prompt and itself: tokens of queries, of keys."""
    sizes, plain = [], segments._sdpa

    def noted(module, query, key, *args, **kwargs):
        sizes.append((query.shape[2], key.shape[2]))
        return plain(module, query, key, *args, **kwargs)

    monkeypatch.setattr(segments, "_sdpa", noted)
    model = in_segments(tiny_model(num_hidden_layers=1))
    score_answers(model, PACKED(PAIRS[:2]))
    # The last token of a prompt begins its answers, and the last one of an answer is no input.
    assert sizes == [(1, 1), (8, 8), (20, 20), (2, 22), (1, 21)]


@pytest.mark.parametrize("window", [None, *range(1, 9)])
def test_pieces_are_those_of_the_mask_over_the_row(window):
    batch = PACKED(PAIRS)
    arguments = *(batch[name] for name in ("prompt_index", "branch", "position_ids")), torch.float32
    expected = MaskPlan({"": window}).masks(*arguments)
    found = torch.full_like(expected, torch.finfo(torch.float32).min)
    pieces = SegmentPlan({"": window}).masks(*arguments).segments
    columns = torch.arange(found.shape[-1]).split([piece.length for piece in pieces])
    for number, piece in enumerate(pieces):
        keys = columns[number] if piece.prefix is None else torch.cat([columns[piece.prefix], columns[number]])
        causal = torch.full((piece.length, len(keys)), torch.finfo(torch.float32).min)
        causal.triu_(1 if piece.prefix is None else len(keys))  # one token behind a prefix sees all
        assert piece.prefix is None or piece.mask is not None or piece.length == 1
        found[0, 0, columns[number][:, None], keys] = causal if piece.mask is None else piece.mask[0, 0]
    assert torch.equal(found, expected)


def test_a_layer_that_calls_itself_not_causal_is():
    """Some say so because they were given a mask."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4, generator=generator) for _ in range(3))
    mask = segments.SegmentMask.of([segments.Segment(5, None, None)], query.device)
    found, _ = segments._segment_attention(torch.nn.Module(), query, key, value, mask, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_any_other_mask_is_plain_sdpa():
    """As generation and evaluation by others use it: with padding on the left, and with none."""
    model, plain = in_segments(tiny_model()), tiny_model().eval()
    ids = torch.arange(3, 33).reshape(3, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for given in (mask, None):
        found = model(input_ids=ids, attention_mask=given).logits
        torch.testing.assert_close(found, plain(input_ids=ids, attention_mask=given).logits, rtol=0, atol=0)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask}
    assert model.generate(ids, **settings).tolist() == plain.generate(ids, **settings).tolist()


def test_a_saved_model_does_not_know_of_it(tmp_path):
    in_segments(tiny_model()).save_pretrained(tmp_path)
    assert SEGMENT_ATTENTION not in (tmp_path / "config.json").read_text()
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_several_rows_are_refused():
    model = in_segments(tiny_model())
    with pytest.raises(ValueError, match="one packed row, found 4 rows"):
        score_answers(model, PairCollator(layout="shared_prefix")(PAIRS))
