"""The model that trains: where it comes from, its dtype, adapters, dropout, and the refusals."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import FalconConfig, GPT2Config, LlamaConfig, OPTConfig, PersimmonConfig

from models import SMALL, random_pairs, tiny_model
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.load import (
    check_model_name,
    check_positions,
    check_trainable_dtypes,
    describe,
    disable_dropout,
    load_model,
    prepare_model,
)
from simpo_trainer.model.scoring import add_scoring_forward, score_answers
from simpo_trainer.model.settings import ModelSettings


def lora() -> LoraConfig:
    return LoraConfig(target_modules=["q_proj"], r=2, lora_dropout=0.5, task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def bf16_checkpoint(tmp_path_factory):
    """A model saved in bfloat16, as most are."""
    folder = tmp_path_factory.mktemp("bf16")
    tiny_model().bfloat16().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, bf16_checkpoint):
    """An adapter saved for inference, its base the bfloat16 checkpoint."""
    folder = tmp_path_factory.mktemp("adapter")
    base = load_model(bf16_checkpoint, ModelSettings(), adapter_follows=False, bf16=False)
    config = LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    return str(folder)


# ---- Loading by name ----


def test_a_bf16_checkpoint_is_trained_in_float32(bf16_checkpoint):
    """The numbers are the checkpoint's, in a dtype in which they can move."""
    model = load_model(bf16_checkpoint, ModelSettings(), adapter_follows=False, bf16=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = tiny_model().bfloat16().float().state_dict()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)
    check_trainable_dtypes(model)


def test_the_seed_decides_the_weights_of_a_new_adapter():
    """Else two runs of the same command differ from their first step on."""

    def weights(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever was drawn before
        model = prepare_model(tiny_model(), ModelSettings(), lora(), seed=seed)
        return torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora_A" in name])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_base_under_an_adapter_may_be_bfloat16(bf16_checkpoint, bf16, dtype):
    settings = ModelSettings()
    model = prepare_model(
        load_model(bf16_checkpoint, settings, adapter_follows=True, bf16=bf16), settings, lora(), seed=0
    )
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert (frozen, trained) == ({dtype}, {torch.float32})


def test_model_init_kwargs_are_passed_on_and_their_dtype_wins(bf16_checkpoint):
    settings = ModelSettings(model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"})
    model = load_model(bf16_checkpoint, settings, adapter_follows=False, bf16=False)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert settings.model_init_kwargs == {"dtype": "bfloat16", "attn_implementation": "eager"}


def test_an_adapter_folder_is_loaded_to_train_on(adapter_folder):
    model = prepare_model(
        load_model(adapter_folder, ModelSettings(), adapter_follows=False, bf16=False), ModelSettings(), None, seed=0
    )
    assert isinstance(model, PeftModel)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and weight.dtype == torch.float32 for name, weight in trained.items())
    assert any(weight.abs().max() > 0 for name, weight in trained.items() if "lora_B" in name)  # as saved, not new


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "/no/such/folder",
            r"'/no/such/folder' does not exist or is not a folder.*must be a folder made by save_pretr",
        ),
        ("./missing", r"'\./missing' does not exist"),
        ("runs/mine/model", r"'runs/mine/model' does not exist"),
        ("{tmp}/file.bin", r"does not exist or is not a folder"),
        ("{tmp}", r"holds no config\.json.*For a checkpoint of a run, name the checkpoint-N folder"),
    ],
)
def test_names_that_hold_no_model(name, message, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(SimPOError, match=message):
        check_model_name(name.format(tmp=tmp_path))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "gpt2"])
def test_hub_names_pass_the_check(name):
    check_model_name(name)


def test_folders_of_models_and_adapters_pass_the_check(bf16_checkpoint, adapter_folder):
    check_model_name(bf16_checkpoint)
    check_model_name(adapter_folder)


def test_a_home_folder_is_found(bf16_checkpoint, tmp_path, monkeypatch):
    """~ is the user's home, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(bf16_checkpoint)
    check_model_name("~/model")


def test_a_name_that_cannot_be_loaded():
    with pytest.raises(SimPOError, match=r"(?s)The model 'nobody/nothing' could not be loaded: .*hf auth login"):
        load_model("nobody/nothing", ModelSettings(), adapter_follows=False, bf16=False)


# ---- Adapters ----


def test_a_second_adapter_is_refused():
    with pytest.raises(SimPOError, match=r"already has an adapter.*leave peft_config out; for a new one, merge"):
        prepare_model(get_peft_model(tiny_model(), lora()), ModelSettings(), lora(), seed=0)


def test_a_frozen_adapter_is_refused(adapter_folder):
    model = PeftModel.from_pretrained(tiny_model(), adapter_folder)
    with pytest.raises(SimPOError, match=r"no trainable parameter.*is_trainable=True"):
        prepare_model(model, ModelSettings(), None, seed=0)


def test_weights_saved_beside_an_adapter_train_in_float32():
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = prepare_model(tiny_model().bfloat16(), ModelSettings(), config, seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    check_trainable_dtypes(model)


# ---- Weights that train are float32 ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_may_not_train(dtype):
    model = tiny_model()
    model.model.norm.to(dtype)
    count = len(list(model.parameters()))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(SimPOError, match=rf"1 of {count} trainable weights are {name} \(first: model\.norm\.weight\)"):
        check_trainable_dtypes(model)
    model.model.norm.requires_grad_(False)
    check_trainable_dtypes(model)


# ---- Dropout ----


DROPOUT_CONFIGS = {
    "modules": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=97, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5
    ),
    "numbers": LlamaConfig(**SMALL, attention_dropout=0.5),
    "layers": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        dropout=0.5,
        layerdrop=0.5,
    ),
    "configuration": FalconConfig(**SMALL, hidden_dropout=0.5, attention_dropout=0.5),
    "attention's configuration": PersimmonConfig(**SMALL, attention_dropout=0.5),
}


def loss_varies(model) -> bool:
    """Whether two passes in training mode score the same answers differently."""
    batch = PairCollator()(random_pairs(2))
    model.train()
    first, second = (score_answers(model, batch).average for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("kind", DROPOUT_CONFIGS)
def test_dropout_is_switched_off_wherever_it_is_kept(kind):
    """In `nn.Dropout`, as a number of a layer, as a chance to skip layers, in the configuration read by the forward."""
    model = tiny_model(DROPOUT_CONFIGS[kind])
    add_scoring_forward(model)
    assert loss_varies(model)
    disable_dropout(model)
    assert not loss_varies(model)


@pytest.mark.parametrize("disabled", [True, False])
def test_the_dropout_of_lora_follows_the_setting(disabled):
    model = prepare_model(tiny_model(), ModelSettings(disable_dropout=disabled), lora(), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    add_scoring_forward(model.get_base_model())
    assert loss_varies(model) != disabled


# ---- Positions ----


def test_rows_must_fit_the_positions_of_the_model():
    model = tiny_model(max_position_embeddings=64)
    check_positions(model, 64)
    message = r"longest prompt \+ answer has 65 tokens, but the model has positions for 64\. Set max_length: 64"
    with pytest.raises(SimPOError, match=message):
        check_positions(model, 65)
    with pytest.raises(SimPOError, match="positions for 64"):
        check_positions(get_peft_model(model, lora()), 65)
    with pytest.raises(SimPOError, match="positions for 16"):
        check_positions(tiny_model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=97, n_positions=16)), 17)


def test_description_counts_parameters():
    model = torch.nn.Linear(9, 10)
    model.bias.requires_grad_(False)
    assert describe(model) == "100 parameters, 90 of them train (90.00%)"
