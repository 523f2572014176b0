"""Adapters are what was asked for: the names that they train, their dropout, and what they are once merged."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    TrainableTokensConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from models import ARCHITECTURES, tiny_architecture, tiny_model
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.adapters import check_adapter
from simpo_trainer.model.load import load_model, prepare_model
from simpo_trainer.model.settings import ModelSettings

IDS = torch.arange(3, 97)[None]


def prepared(config, model=None, **settings):
    return prepare_model(model or tiny_model(), ModelSettings(**settings), config, seed=0)


def lora(*targets, **settings):
    return LoraConfig(target_modules=list(targets) or ["q_proj"], r=4, task_type="CAUSAL_LM", **settings)


# ---- Dropout ----


def dropouts_in(model) -> set[float]:
    """All rates above 0 that the layers of a model's adapter have."""
    found: set[float] = set()
    for module in model.modules():
        held = {name: value for name, value in vars(module).items() if name.endswith("dropout")}
        if "Dropout" in type(module).__name__:
            held["p"] = module.p
        for value in held.values():
            rates = value.values() if isinstance(value, dict) else [value]
            found |= {rate for rate in rates if isinstance(rate, float) and rate > 0}
    return found


ADAPTERS_WITH_DROPOUT = {
    "lora": lambda: lora(lora_dropout=0.05),
    "loha": lambda: LoHaConfig(target_modules=["q_proj"], rank_dropout=0.1, module_dropout=0.2),
    "boft": lambda: BOFTConfig(target_modules=["q_proj"], boft_block_size=4, boft_dropout=0.3),
}


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "passed in"])
@pytest.mark.parametrize("name", ADAPTERS_WITH_DROPOUT)
def test_the_saved_configuration_says_the_dropout_that_was_trained(tmp_path, name, loaded):
    config = ADAPTERS_WITH_DROPOUT[name]()
    model = prepared(None, get_peft_model(tiny_model(), config)) if loaded else prepared(config)
    assert not dropouts_in(model)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {value for key, value in saved.items() if key.endswith("dropout")} == {0.0}


def test_a_dropout_that_is_kept_is_saved(tmp_path):
    model = prepared(lora(lora_dropout=0.05), disable_dropout=False)
    assert dropouts_in(model) == {0.05}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.05


def test_a_dropout_that_is_disabled_is_told_and_the_given_configuration_stays(caplog):
    config = lora(lora_dropout=0.05)
    prepared(config)
    assert "lora_dropout of the adapter is 0.05, but disable_dropout is true" in caplog.text
    assert config.lora_dropout == 0.05


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_an_adapter_over_fused_experts_needs_no_dropout(name):
    config = LoraConfig(target_modules="all-linear", r=2, lora_dropout=0.05)
    model = prepared(config, tiny_architecture(name))
    assert any("experts" in each for each, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(SimPOError, match=r"Fused experts take no dropout\. Set lora_dropout: 0, or disable_dropout"):
        prepared(config, tiny_architecture(name), disable_dropout=False)


# ---- Names ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora("q_proj", "v_porj"), "target_modules of the adapter names v_porj, which .* Did you mean v_proj"),
        (lora("all-linear", "lm_head"), "'all-linear' among other names; it must stand alone"),
        (lora(modules_to_save=["norm", "lm_haed"]), "modules_to_save of the adapter names lm_haed"),
        (lora(modules_to_save="norm"), r"modules_to_save is the text 'norm'; .*modules_to_save: \[norm\]"),
        (lora(target_parameters=["mlp.nope"]), "target_parameters of the adapter names mlp.nope"),
        (LoraConfig(target_modules="q_proj"), r"Target modules q_proj not found .*in a list: \['q_proj'\]"),
        (LoraConfig(target_modules="(q_proj"), "no valid one: .*Give names as a list"),
        (LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"), "task_type is SEQ_CLS; it must be CAUSAL_LM"),
    ],
)
def test_names_and_tasks_that_peft_takes_in_silence_are_refused(config, message):
    with pytest.raises(SimPOError, match=message):
        prepared(config)


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (lora("layers.0.self_attn.q_proj", "v_proj", modules_to_save=["model.norm"]), "llama"),
        (LoraConfig(target_modules=".*(q|v)_proj"), "llama"),
        (lora("q_proj", "w1", "w2", "w3"), "mixtral"),
        (LoraConfig(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]), "mixtral"),
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), "llama"),
    ],
)
def test_names_that_the_model_has_pass(config, architecture):
    prepared(config, tiny_architecture(architecture))


# ---- One weight that is embedding and head ----


def tied():
    return tiny_model(ARCHITECTURES["qwen3-tied"]())


def changed(model):
    """The model after a training of its adapter, as it were."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


MERGEABLE = {
    "neither end": lambda: lora(),
    "all-linear": lambda: LoraConfig(target_modules="all-linear", r=4),
    "a copy of the head": lambda: lora(modules_to_save=["lm_head"]),
    "a copy of the embedding": lambda: lora(modules_to_save=["embed_tokens"]),
    "copies of both": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "one copy": lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "tokens": lambda: lora(trainable_token_indices=[3, 5]),
    "tokens alone": lambda: TrainableTokensConfig(token_indices=[3, 5], target_modules=["embed_tokens"]),
    "dora elsewhere": lambda: lora(use_dora=True),
}


@pytest.mark.parametrize("name", MERGEABLE)
@torch.no_grad()
def test_a_merged_model_is_the_one_that_was_trained(tmp_path, name):
    model = changed(prepared(MERGEABLE[name](), tied()))
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    # What goes on from the saved adapter is the same model, and is taken.
    again = PeftModel.from_pretrained(tied(), tmp_path / "adapter", is_trainable=True).eval()
    torch.testing.assert_close(prepared(None, again)(input_ids=IDS).logits, expected)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


NOT_MERGEABLE = {
    "head": lambda: lora("q_proj", "lm_head"),
    "embedding": lambda: lora("q_proj", "embed_tokens"),
    "both": lambda: lora("lm_head", "embed_tokens"),
    "tied by peft": lambda: lora("q_proj", "lm_head", "embed_tokens", ensure_weight_tying=True),
    "pattern": lambda: LoraConfig(target_modules=".*(q_proj|lm_head)"),
    "parameter": lambda: lora(target_parameters=["lm_head.weight"]),
    "dora": lambda: lora("q_proj", "lm_head", use_dora=True),
    "tokens of the head": lambda: lora(trainable_token_indices={"lm_head": [3, 5]}),
    "other tokens": lambda: lora(trainable_token_indices={"lm_head": [3], "embed_tokens": [5]}),
    "loha": lambda: LoHaConfig(target_modules=["q_proj", "lm_head"]),
    "copy of one, change of the other": lambda: lora("q_proj", "lm_head", modules_to_save=["embed_tokens"]),
}


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "passed in"])
@pytest.mark.parametrize("name", NOT_MERGEABLE)
def test_an_adapter_that_would_be_another_model_once_merged_is_refused(name, loaded):
    config = NOT_MERGEABLE[name]()
    message = r"embed_tokens and lm_head are one weight .*modules_to_save .*: \[embed_tokens, lm_head\]"
    with pytest.raises(SimPOError, match=message):
        prepared(None, get_peft_model(tied(), config)) if loaded else prepared(config, tied())


def test_a_folder_with_such_an_adapter_is_refused(tmp_path):
    tied().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora("lm_head")).save_pretrained(tmp_path / "adapter")
    model = load_model(str(tmp_path / "adapter"), ModelSettings(), adapter_follows=False, bf16=False)
    with pytest.raises(SimPOError, match="are one weight"):
        prepared(None, model)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
@torch.no_grad()
def test_two_weights_take_any_adapter(tmp_path, targets):
    model = changed(prepared(lora(*targets)))
    expected = model(input_ids=IDS).logits
    model.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_dora_over_rows_of_zeros_is_refused():
    """Its first forward would be NaN."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[4:6] = 0
    with pytest.raises(SimPOError, match=r"lm_head has 2 rows of zeros: DoRA divides .* set use_dora: false"):
        prepared(lora("q_proj", "lm_head", use_dora=True), model)


def test_a_start_that_cannot_be_repeated_is_refused(tmp_path):
    """The adapter would be loaded over another base than it was trained on."""
    with pytest.raises(SimPOError, match="init_lora_weights is pissa_niter_4; .*Set init_lora_weights: 'pissa'"):
        prepared(lora(init_lora_weights="pissa_niter_4"))
    prepared(lora(init_lora_weights="pissa"))


def test_ranks_that_nothing_allocates_are_told(caplog):
    prepared(AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    assert "every rank stays init_r" in caplog.text


def test_names_of_an_adapter_that_was_loaded_are_not_checked_again():
    """Its weights were: a base may have layers that its list does not name, and the list others."""
    check_adapter(get_peft_model(tiny_model(), lora("q_proj", "fc1")), is_new=False)
