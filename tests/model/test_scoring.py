"""Scores of answers against the slow reference, for every kind of head and adapter."""

import inspect
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.state import AcceleratorState
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PretrainedConfig,
)

from models import ARCHITECTURES, SMALL, as_exact_as_can_be, halved_llama, random_pairs, tiny_architecture, tiny_model
from reference import gradients, in_float64, score_pairs
from simpo_trainer.batches.batch import NOT_SCORED, PairCollator
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.attached import Scoring, is_prepared, replace_scoring, scoring_of
from simpo_trainer.model.head import LogitTransform
from simpo_trainer.model.scoring import add_scoring_forward, check_scoring, score_answers

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
PAIRS = random_pairs(4)


def scoring_model(name: str = "llama"):
    model = as_exact_as_can_be(tiny_architecture(name)).eval()
    add_scoring_forward(model)
    return model


def assert_scores_are(scores, expected) -> None:
    """All four numbers of each answer equal those of the reference, up to the float32 of norm layers."""
    answers = expected.chosen + expected.rejected
    for name, values in {
        "sum": [answer.sum for answer in answers],
        "average": [answer.average for answer in answers],
        "length": [torch.tensor(float(len(answer.logps))) for answer in answers],
        "logits_sum": [answer.mean_logits.sum() for answer in answers],
    }.items():
        torch.testing.assert_close(
            getattr(scores, name).double(),
            torch.stack(values).double(),
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, n=name: n + m,
        )


# ---- Against the reference ----


@every_architecture
def test_scores_and_gradients_equal_the_reference(name):
    """Padded together in one forward pass, or one by one without padding: the same numbers, for every weight."""
    model = scoring_model(name)
    slow = in_float64(model)
    scores = score_answers(model, PairCollator()(PAIRS))
    expected = score_pairs(slow, PAIRS)
    assert_scores_are(scores, expected)

    factors = torch.linspace(-1, 2, 2 * len(PAIRS))
    found = gradients(model, (scores.average * factors).sum())
    averages = torch.stack([answer.average for answer in expected.chosen + expected.rejected])
    reference = gradients(slow, (averages * factors).sum())
    assert found.keys() == reference.keys()
    for weight, gradient in reference.items():
        assert (found[weight] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, weight


def test_select_picks_answers():
    scores = score_answers(scoring_model(), PairCollator()(PAIRS))
    picked = scores.select(torch.tensor([5, 0]))
    for field in ("sum", "average", "length", "logits_sum"):
        assert torch.equal(getattr(picked, field), getattr(scores, field)[[5, 0]])


def test_a_float32_model_is_scored_in_float32_and_close():
    model = tiny_model().eval()
    add_scoring_forward(model)
    scores = score_answers(model, PairCollator()(PAIRS))
    assert scores.average.dtype == torch.float32
    assert_scores_are(scores, score_pairs(in_float64(model), PAIRS))


def test_dropout_is_the_models_own():
    """With dropout on, scoring draws what the plain forward draws from the same generator state."""
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)
    model = tiny_model(config).double().train()
    add_scoring_forward(model)
    batch = PairCollator()(PAIRS[:1])
    scored = batch["shift_labels"] != NOT_SCORED
    torch.manual_seed(3)
    logits = model(
        batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=batch["position_ids"]
    ).logits
    expected = logits.log_softmax(-1)[scored].gather(-1, batch["shift_labels"][scored][:, None])[:, 0]
    torch.manual_seed(3)
    found = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        scored_labels=batch["shift_labels"],
    ).logps
    torch.testing.assert_close(found, expected)


def test_no_cache_is_built():
    """Keys and values of every position would be kept for tokens that never come."""
    model = scoring_model()
    outputs = []
    model.base_model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    score_answers(model, PairCollator()(PAIRS))
    assert [output.past_key_values for output in outputs] == [None]


# ---- Adapters ----


def adapted_model(config, *, seed: int = 0):
    """A tiny model in float64 with an adapter whose weights are random, prepared as the trainer does."""
    model = get_peft_model(tiny_model().double(), config).double().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    add_scoring_forward(model.get_base_model())
    return model


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["lm_head", "v_proj"], task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], task_type="CAUSAL_LM"),
        LoraConfig(target_modules="all-linear", use_dora=True),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "lora on the head", "saved head", "dora", "prompt tuning", "prefix tuning"],
)
def test_adapted_models_equal_the_reference(config):
    """Scores, and gradients of all weights of the adapter; virtual tokens in front shift no label."""
    model = adapted_model(config)
    scores = score_answers(model, PairCollator()(PAIRS))
    expected = score_pairs(model, PAIRS)
    assert_scores_are(scores, expected)

    averages = torch.stack([answer.average for answer in expected.chosen + expected.rejected])
    factors = torch.linspace(-1, 2, 2 * len(PAIRS))
    found, reference = (gradients(model, (values * factors).sum()) for values in (scores.average, averages))
    assert any(gradient.norm() > 1e-3 for gradient in reference.values())
    for weight, gradient in reference.items():
        assert (found[weight] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, weight


@pytest.mark.slow
def test_an_adapter_put_on_afterwards_counts():
    """Backbone and head are looked up on each call."""
    model = tiny_model().double().eval()
    add_scoring_forward(model)
    before = score_answers(model, PairCollator()(PAIRS)).average
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False)).double()
    after = score_answers(adapted, PairCollator()(PAIRS))
    assert (after.average - before).abs().max() > 0.01
    assert_scores_are(after, score_pairs(adapted, PAIRS))


# ---- The model is otherwise its own ----


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_plain_forward_and_generation_are_unchanged(name):
    model, prepared = tiny_architecture(name).eval(), tiny_architecture(name).eval()
    add_scoring_forward(prepared)
    ids = torch.tensor([[1, 5, 8, 13], [1, 40, 41, 42]])
    plain, after = model(ids, labels=ids), prepared(ids, labels=ids)
    assert torch.equal(after.logits, plain.logits) and torch.equal(after.loss, plain.loss)
    mask = torch.ones_like(ids)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(prepared.generate(ids, **options), model.generate(ids, **options))
    assert inspect.signature(prepared.forward) == inspect.signature(model.forward)
    assert prepared.state_dict().keys() == model.state_dict().keys()


def test_preparing_twice_is_preparing_once():
    model = scoring_model()
    once = model.forward
    add_scoring_forward(model)
    assert model.forward == once
    del model.forward  # as a library does that puts the model's own back
    assert not is_prepared(model)
    add_scoring_forward(model)
    assert is_prepared(model) and model.forward != type(model).forward


def test_what_scoring_attaches_has_one_name():
    model = tiny_model()
    before = set(vars(model))
    add_scoring_forward(model)
    assert set(vars(model)) - before == {"forward", "simpo_scoring"}
    copied = deepcopy(model)
    replace_scoring(copied, Scoring(None))
    assert scoring_of(model).mask_plan is not None and scoring_of(copied).mask_plan is None
    for path in (Path(__file__).parents[2] / "simpo_trainer").rglob("*.py"):
        assert path.name == "attached.py" or "simpo_scoring" not in path.read_text(encoding="utf-8"), path


def test_a_saved_model_is_the_plain_model(tmp_path):
    model = scoring_model().float()
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 8, 13]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_copy_of_a_prepared_model_runs_on_its_own_weights():
    """Averages of weights and reference models are made with deepcopy."""
    model = scoring_model()
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5)
    assert_scores_are(score_answers(copy, PairCollator()(PAIRS)), score_pairs(in_float64(copy), PAIRS))
    ids = torch.tensor([[1, 5, 8, 13]])
    torch.testing.assert_close(copy(ids).logits, in_float64(copy)(ids).logits)


def test_hooks_that_a_library_has_put_on_the_forward_still_run():
    """accelerate moves inputs between devices in such hooks."""

    class Noting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model = tiny_model()
    hook = Noting()
    add_hook_to_module(model, hook)
    add_scoring_forward(model)
    model(torch.tensor([[1, 5, 8]]))
    assert hook.calls == 1


# ---- Refusals ----


class HeadWithoutBackbone(LlamaForCausalLM):
    """Does not say which of its parts is the backbone."""

    base_model_prefix = "backbone"


def test_refuses_what_is_not_a_decoder_with_a_head():
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    cases = [
        BartForConditionalGeneration(BartConfig(vocab_size=97, d_model=32, **layers)),
        HeadWithoutBackbone(LlamaConfig(**SMALL)),
        LlamaModel(LlamaConfig(**SMALL)),
        AutoModelForSequenceClassification.from_config(LlamaConfig(**SMALL)),
    ]
    for model in cases:
        with pytest.raises(
            SimPOError, match=f"{type(model).__name__}; SimPO needs a decoder-only .*AutoModelForCausalLM"
        ):
            add_scoring_forward(model)
        assert "forward" not in vars(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_scoring_refuses_an_unknown_scaling_of_logits(dtype):
    model = halved_llama().to(dtype)
    add_scoring_forward(model)
    with pytest.raises(SimPOError, match="HalvedLlama changes its logits between head and softmax"):
        check_scoring(model)


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_scoring_passes_known_architectures_in_any_precision(name, dtype):
    model = tiny_architecture(name).to(dtype)
    add_scoring_forward(model)
    check_scoring(model)


@pytest.mark.parametrize("name", ["cohere", "granite", "hyperclovax", "gemma2"])
def test_check_scoring_would_see_a_transform_left_out(name, monkeypatch):
    model = tiny_architecture(name)
    monkeypatch.setattr(LogitTransform, "from_config", classmethod(lambda cls, config: cls()))
    add_scoring_forward(model)
    with pytest.raises(SimPOError, match="changes its logits"):
        check_scoring(model)


@pytest.mark.parametrize("training", [True, False])
def test_check_scoring_leaves_mode_and_random_state_alone(training):
    model = tiny_model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97)).train(training)
    add_scoring_forward(model)
    before = torch.get_rng_state()
    check_scoring(model)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- What is read from configurations ----


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "llama": LogitTransform(),
        "gpt2": LogitTransform(),
        "phi": LogitTransform(),
        "cohere": LogitTransform(scale=0.25),
        "granite": LogitTransform(scale=1 / 4.0),
        "hyperclovax": LogitTransform(scale=0.25),
        "gemma2": LogitTransform(softcap=3.0),
    }.items(),
)
def test_transform_from_config(name, expected):
    assert LogitTransform.from_config(ARCHITECTURES[name]()) == expected


@pytest.mark.parametrize("key", ["logit_scale", "output_multiplier", "lm_head_multiplier"])
def test_scale_and_softcap_together(key):
    config = PretrainedConfig(**{key: 0.5, "final_logit_softcapping": 30.0})
    assert LogitTransform.from_config(config) == LogitTransform(scale=0.5, softcap=30.0)


def test_calling_a_transform_equals_applying_it_in_place():
    logits = torch.linspace(-9, 9, 7, dtype=torch.float64)
    for transform in (LogitTransform(), LogitTransform(0.5), LogitTransform(softcap=4.0), LogitTransform(2.0, 4.0)):
        before = logits.clone()
        torch.testing.assert_close(transform(logits), transform.apply_(logits.clone()), rtol=0, atol=1e-15)
        assert torch.equal(logits, before)


def test_unwrapping_by_accelerate_keeps_the_scoring():
    """It takes autocast off the forward, and only that."""
    AcceleratorState._reset_state()  # what other tests decided about precision does not concern this one
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = scoring_model()
    prepared = accelerator.prepare_model(model)
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert_scores_are(score_answers(plain, PairCollator()(PAIRS)), score_pairs(in_float64(model), PAIRS))
    AcceleratorState._reset_state()
