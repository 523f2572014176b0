"""Every layout gives the log-probabilities and gradients of one sequence at a time, or is not chosen."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    Lfm2Config,
    MambaConfig,
    MptConfig,
    OPTConfig,
    Qwen3NextConfig,
)

from models import ARCHITECTURES, SMALL, halved_llama, random_pairs, tiny_architecture, tiny_model
from reference import assert_scored_as_single_sequences, in_float64, score_pairs
from runs import assert_same_run, make_trainer, train_log
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.errors import SimPOError
from simpo_trainer.model import layout_choice as layouts
from simpo_trainer.model.attached import scoring_of
from simpo_trainer.model.attention import MaskPlan
from simpo_trainer.model.layout_choice import TESTED, choose_layout
from simpo_trainer.model.scoring import add_scoring_forward, score_answers, score_batch
from simpo_trainer.model.segments import SEGMENT_ATTENTION, Segment, SegmentPlan

# As it runs on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PAIRS = random_pairs(5)
LAYOUTS = ["padded", "shared_prefix", "packed"]
# As different as layouts meet them: a prompt of one token, answers of one token, sides of very uneven length.
UNEVEN = [
    {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [5, 6, 7, 8, 9, 10, 11, 2]},
    {"prompt_ids": [1, *range(20, 40)], "chosen_ids": [5, 2], "rejected_ids": [2]},
    *random_pairs(2, seed=3),
]


# Gemma 2 caps its attention logits, which SDPA cannot.
_EAGER_ONLY = {"gemma2"}
every_attention = pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "eager" if name in _EAGER_ONLY else "sdpa") for name in ARCHITECTURES),
        *(pytest.param(name, "eager", marks=pytest.mark.slow) for name in ARCHITECTURES if name not in _EAGER_ONLY),
    ],
)


def some_quickly(names):
    """All architectures, but those that differ little for a test as slow ones."""
    quick = ("llama", "gemma2", "gemma3", "mixtral")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


def prepared(model):
    add_scoring_forward(model)
    return model.eval()


def averages(model, pairs, layout):
    scores = score_answers(model, PairCollator(layout=layout)(pairs))
    return torch.cat([scores.average[: len(pairs)], scores.average[len(pairs) :]])


def expected_averages(slow, pairs):
    scored = score_pairs(slow, pairs)
    return torch.stack([answer.average for answer in [*scored.chosen, *scored.rejected]])


# Packed rows get masks over the row where they do not go piece by piece (test_segments.py): the rows are rarer, the
# masks those of shared rows.
@pytest.mark.parametrize("layout", [*LAYOUTS[:2], pytest.param("packed", marks=pytest.mark.slow)])
@every_attention
def test_values_and_gradients_are_those_of_single_sequences(name, attention, layout):
    config = ARCHITECTURES[name]()
    config._attn_implementation = attention
    model = prepared(tiny_model(config))
    assert_scored_as_single_sequences(model, in_float64(model), UNEVEN, averages(model, UNEVEN, layout))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", some_quickly(ARCHITECTURES))
@torch.no_grad()
def test_bfloat16_autocast(name, layout):
    """bfloat16 has eight bits: what differs is its rounding, under 1 % of a log-probability, not the mask.

    No layout is further from float32 than three times what padded rows are.
    """
    model = prepared(tiny_architecture(name))
    exact = averages(model, UNEVEN, "padded")
    with torch.autocast("cpu", torch.bfloat16):
        padded, found = averages(model, UNEVEN, "padded"), averages(model, UNEVEN, layout)
    noise = (padded - exact).abs().max()
    assert 0 < noise < 0.01 * exact.abs().mean()
    assert (found - exact).abs().max() < 3 * noise


# transformers refuses flex attention for these.
_NO_FLEX = {"gpt2", "stablelm"}
every_flexible = pytest.mark.parametrize("name", some_quickly(set(ARCHITECTURES) - _NO_FLEX))


def flex_model(config):
    config._attn_implementation = "flex_attention"
    return prepared(tiny_model(config))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@every_flexible
@torch.no_grad()
def test_flex_attention_scores_as_single_sequences_do(name, layout):
    """Values only: torch has no backward pass for it on a CPU."""
    found = averages(flex_model(ARCHITECTURES[name]()), UNEVEN, layout)
    config = ARCHITECTURES[name]()
    config._attn_implementation = "eager"
    expected = expected_averages(in_float64(tiny_model(config)), UNEVEN)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_drops_what_it_pads():
    """Rows are widened to whole blocks inside the forward; router logits too are those of the batch's own columns."""
    config = ARCHITECTURES["mixtral"]()
    config.output_router_logits = True
    model = flex_model(config)
    widths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    batch = PairCollator(layout="packed")(UNEVEN)
    _, router_logits = score_batch(model, batch)
    assert widths == [128] and {logits.shape[:2] for logits in router_logits} == {batch["input_ids"].shape}


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_sibling_is_not_seen(layout):
    model = prepared(tiny_architecture("llama"))
    changed = [{**pair, "rejected_ids": [50, 51, 52, 2]} for pair in PAIRS]
    before, after = averages(model, PAIRS, layout), averages(model, changed, layout)
    torch.testing.assert_close(after[: len(PAIRS)], before[: len(PAIRS)], rtol=1e-5, atol=1e-6)
    assert (after[len(PAIRS) :] - before[len(PAIRS) :]).abs().min() > 1e-3


# ---- The choice ----


@every_attention
def test_known_architectures_share(name, attention):
    config = ARCHITECTURES[name]()
    config._attn_implementation = attention
    model = prepared(tiny_model(config))
    by_pieces = attention == "sdpa"
    layout, why = choose_layout(model, "auto")
    assert layout == ("packed" if by_pieces else "shared_prefix")
    assert ("attention goes from piece to piece" in why) == by_pieces
    expected = averages(model, UNEVEN, layout)
    assert choose_layout(model, "packed")[0] == "packed"
    assert choose_layout(model, "padded") == ("padded", "as asked for")
    assert choose_layout(model, "shared_prefix")[0] == "shared_prefix"
    torch.testing.assert_close(averages(model, UNEVEN, "shared_prefix"), expected, rtol=1e-5, atol=1e-5)


def test_a_compiled_model_gets_masks():
    model = prepared(tiny_model())
    assert choose_layout(model, "auto", compiled=True)[0] == "shared_prefix"
    assert choose_layout(model, "packed", compiled=True) == ("packed", "a prompt is run once for its answers")
    assert model.config._attn_implementation == "sdpa" and type(scoring_of(model).mask_plan) is MaskPlan


def test_what_is_called_tested_is_tested():
    assert {config().model_type for config in ARCHITECTURES.values()} - {"hyperclovax"} == TESTED


_TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
UNSHAREABLE = {
    "bloom": (BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "does not take masks and positions"),
    "falcon": (FalconConfig(**_TINY, alibi=True), "does not take masks and positions"),
    "mpt": (MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4), "scores shared rows otherwise than single"),
    "mamba": (MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2), ""),
    "gpt-neo": (
        GPTNeoConfig(
            vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
        ),
        "have a window of their own",
    ),
    "lfm2": (Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "layers of the kind conv"),
    "qwen3-next": (
        Qwen3NextConfig(
            **SMALL, num_experts=4, num_experts_per_tok=2, layer_types=["linear_attention", "full_attention"]
        ),
        "layers of the kind linear_attention",
    ),
}


@pytest.mark.parametrize("name", UNSHAREABLE)
def test_models_that_cannot_share_get_padded_rows(name):
    config, reason = UNSHAREABLE[name]
    model = prepared(tiny_model(config))
    layout, why = choose_layout(model, "auto")
    assert layout == "padded" and "answers cannot share a row" in why and reason in why
    with pytest.raises(
        SimPOError, match="batch_layout is packed, but answers cannot .*Set batch_layout: auto or padded"
    ):
        choose_layout(model, "packed")


def test_opt_counts_positions_as_it_is_told():
    config = OPTConfig(**_TINY, ffn_dim=48, max_position_embeddings=256, word_embed_proj_dim=32)
    model = prepared(tiny_model(config))
    assert choose_layout(model, "auto")[0] == "packed"
    torch.testing.assert_close(
        averages(model, UNEVEN, "packed"), averages(model, UNEVEN, "padded"), rtol=1e-5, atol=1e-5
    )


def test_adapters(tmp_path):
    base = prepared(tiny_model())
    lora = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    assert choose_layout(lora, "auto")[0] == "packed"
    prompt = get_peft_model(prepared(tiny_model()), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    layout, why = choose_layout(prompt, "auto")
    assert layout == "padded" and "PROMPT_TUNING adapter puts tokens of its own in front" in why
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    alora = get_peft_model(prepared(tiny_model()), config)
    layout, why = choose_layout(alora, "auto")
    assert layout == "padded" and "aLoRA adapter looks for its invocation tokens once in a row" in why
    with pytest.raises(SimPOError, match="once in a row"):
        choose_layout(alora, "packed")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-window", "gemma3", "gpt2"])
def test_sequences_that_positions_alone_tell_apart(name):
    """What flash attention gets; SDPA finds the sequences by the same rule."""
    model = prepared(tiny_architecture(name))
    batch = PairCollator(layout="padding_free")(UNEVEN)
    assert "attention_mask" not in batch and len(batch["input_ids"]) == 1
    expected = expected_averages(in_float64(model), UNEVEN)
    torch.testing.assert_close(averages(model, UNEVEN, "padding_free").double(), expected, rtol=1e-5, atol=1e-6)


def test_flash_attention_gets_rows_without_padding(monkeypatch):
    model = prepared(tiny_model())
    model.config._attn_implementation = "flash_attention_2"
    monkeypatch.setattr(layouts, "_fit_masks", lambda model, plan, layout: None)  # no such attention on a CPU
    for wanted in ("auto", "packed"):
        layout, why = choose_layout(model, wanted)
        assert layout == "padding_free" and "flash_attention_2 takes no mask with which they could share" in why
    with pytest.raises(SimPOError, match="batch_layout is shared_prefix, .*flash_attention_2 takes no mask that keeps"):
        choose_layout(model, "shared_prefix")


@pytest.mark.slow
@every_flexible
def test_flex_attention_shares(name):
    model = flex_model(ARCHITECTURES[name]())
    assert choose_layout(model, "auto")[0] == "shared_prefix"
    assert choose_layout(model, "packed")[0] == "packed"


def test_flex_attention_packs_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(layouts, "_fit_masks", lambda model, plan, layout: None)  # the weights are nowhere
    monkeypatch.setattr(layouts, "_weights_are_here", lambda model: True)
    model = flex_model(ARCHITECTURES["llama"]()).to("meta")
    assert choose_layout(model, "auto")[0] == "packed"
    assert choose_layout(model, "shared_prefix")[0] == "shared_prefix"


@pytest.mark.slow
def test_training_with_flex_attention_on_a_cpu_is_refused(tmp_path):
    trainer = make_trainer(
        tmp_path, PAIRS, model=flex_model(ARCHITECTURES["llama"]()), eval_dataset=Dataset.from_list(PAIRS)
    )
    assert trainer.evaluate()["eval_num_pairs"] == len(PAIRS)
    with pytest.raises(SimPOError, match="flex_attention and is on the device cpu.*attn_implementation: sdpa"):
        trainer.train()


def test_other_attention_without_masks():
    model = prepared(tiny_model())
    model.config._attn_implementation = "paged|sdpa"
    assert "paged|sdpa takes no mask that keeps them apart" in choose_layout(model, "auto")[1]


def test_weights_that_are_elsewhere(monkeypatch):
    """Where the test batch cannot run, only architectures share that the test suite compares."""
    monkeypatch.setattr(layouts, "is_deepspeed_zero3_enabled", lambda: True)
    model = prepared(tiny_model())
    assert choose_layout(model, "auto")[0] == "packed"
    assert type(scoring_of(model).mask_plan) is SegmentPlan and model.config._attn_implementation == SEGMENT_ATTENTION
    model.config.model_type = "new_model"
    assert "new_model is not known, and its weights are elsewhere" in choose_layout(model, "auto")[1]


def test_the_test_leaves_the_model_as_it_was():
    model = prepared(halved_llama()).train()
    model.model.layers[0].eval()
    choose_layout(model, "auto")
    assert model.training and not model.model.layers[0].training and model.model.layers[1].training


def test_a_wrong_mask_is_noticed(monkeypatch):
    """The test batch fails where answers see each other, as they would under a plain causal mask."""
    monkeypatch.setattr(
        "simpo_trainer.model.attention._rule",
        lambda prompt, branch, positions, window: lambda row, head, query, key: (query >= key) & (row >= 0),
    )
    config = ARCHITECTURES["llama"]()
    config._attn_implementation = "eager"
    assert "scores shared rows otherwise" in choose_layout(prepared(tiny_model(config)), "auto")[1]


def test_wrong_pieces_are_noticed(monkeypatch):
    """Where attention piece by piece scores otherwise, a mask over the row does."""
    monkeypatch.setattr("simpo_trainer.model.segments._segment", lambda length, prefix, *_: Segment(length, None, None))
    model = prepared(tiny_model())
    assert choose_layout(model, "auto") == ("shared_prefix", "a prompt is run once for its answers")
    assert model.config._attn_implementation == "sdpa" and type(scoring_of(model).mask_plan) is MaskPlan


# ---- Whole runs ----


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_fifty_steps_are_the_same_run(tmp_path, layout):
    rows = random_pairs(64, seed=7)
    settings = {
        "max_steps": 50,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    padded = make_trainer(tmp_path / "padded", rows, batch_layout="padded", **settings)
    padded.train()
    other = make_trainer(tmp_path / layout, rows, batch_layout=layout, **settings)
    other.train()
    assert len(train_log(other, "loss")) == 50
    assert_same_run(other, padded, tolerance=2e-3)


def test_the_layout_is_said(tmp_path, caplog):
    with caplog.at_level("INFO", "simpo_trainer"):
        make_trainer(tmp_path, PAIRS)
        make_trainer(tmp_path, PAIRS, batch_layout="padded")
    shared = sum(len(pair[name]) for pair in PAIRS for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    prompts = sum(len(pair["prompt_ids"]) for pair in PAIRS)
    assert (
        "Batch layout: packed (a prompt is run once for its answers; attention goes from piece to piece; "
        f"{prompts / (shared + prompts):.0%} fewer" in caplog.text
    )
    assert "Batch layout: padded (as asked for)." in caplog.text


def test_a_collator_of_ones_own_decides_the_layout(tmp_path):
    collator = PairCollator(layout="packed")
    assert make_trainer(tmp_path, PAIRS, arguments={"data_collator": collator}).data_collator is collator
    with pytest.raises(
        SimPOError, match="batch_layout is padded, but the data_collator that was passed makes the batches"
    ):
        make_trainer(tmp_path, PAIRS, batch_layout="padded", arguments={"data_collator": collator})
