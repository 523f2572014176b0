"""Weights that are not in a model's folder are an error, not random numbers."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from models import ARCHITECTURES, tiny_architecture, tiny_model
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.load import load_model
from simpo_trainer.model.settings import ModelSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, whole):
    folder = tmp_path_factory.mktemp("adapter")
    model = load_model(str(whole), ModelSettings(), adapter_follows=False, bf16=False)
    get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM")).save_pretrained(
        folder
    )
    return folder


def load(folder, adapter_follows=False):
    return load_model(str(folder), ModelSettings(), adapter_follows=adapter_follows, bf16=False)


def changed(folder, target, change, name="model.safetensors"):
    """A copy of a folder with other weights in it."""
    shutil.copytree(folder, target)
    save_file(change(load_file(target / name)), target / name, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_models_load(tmp_path, name, caplog):
    """What is tied, made anew at every load or saved under other names is not missing."""
    model = tiny_architecture(name)
    model.save_pretrained(tmp_path / name)
    loaded = load(tmp_path / name)
    assert not caplog.text
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("adapter_follows", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {key: weight for key, weight in weights.items() if "layers.1." not in key},
            r"9 of the 21 weights .*: 9 weights \(model.layers.1.input_layernorm.weight, .*Training would start from "
            r"random",
        ),
        (
            lambda weights: {f"module.{key}": weight for key, weight in weights.items()},
            r"21 of the 21 .*It holds 21 weights \(module.lm_head.weight, .* instead: are they named otherwise",
        ),
        (
            lambda weights: {**weights, "model.norm.weight": torch.ones(7)},
            "could not be loaded",
        ),
    ],
    ids=["a layer", "another prefix", "another shape"],
)
def test_missing_weights_are_refused(tmp_path, whole, change, message, adapter_follows):
    folder = changed(whole, tmp_path / "model", change)
    with pytest.raises(SimPOError, match=message):
        load(folder, adapter_follows)


def test_a_broken_file_is_an_error_to_put_right(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SimPOError, match="could not be loaded: .*incomplete"):
        load(tmp_path / "model")


def test_weights_without_a_place_are_told(tmp_path, whole, caplog):
    folder = changed(whole, tmp_path / "model", lambda weights: {**weights, "model.value_head.weight": torch.ones(2)})
    load(folder)
    assert "holds 1 weight (model.value_head.weight) that LlamaForCausalLM does not use" in caplog.text


@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_is_refused(tmp_path, tied):
    config = tiny_model(tie_word_embeddings=tied).config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        SimPOError, match="holds a LlamaForSequenceClassification, which gives scores instead of tokens"
    ):
        load(tmp_path)


# ---- Adapters ----


def test_a_whole_adapter_loads(adapter, caplog):
    model = load(adapter)
    assert model.active_adapter == "default"
    assert not caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {f"base_model.model.{key}": weight for key, weight in weights.items()},
            "8 of the 8 weights .*It holds 8 weights .base_model.model.base_model.model",
        ),
        (
            lambda weights: {key: weight for key, weight in weights.items() if "v_proj" not in key},
            r"4 of the 8 weights .*v_proj.lora_A.weight",
        ),
        (
            lambda weights: {key: weight[:1] for key, weight in weights.items()},
            "(?s)could not be loaded: .*size mismatch",
        ),
    ],
    ids=["doubled prefix", "a target", "another shape"],
)
def test_missing_weights_of_an_adapter_are_refused(tmp_path, adapter, change, message):
    folder = changed(adapter, tmp_path / "adapter", change, "adapter_model.safetensors")
    with pytest.raises(SimPOError, match=message):
        load(folder)


def test_weights_of_an_adapter_without_a_place_are_told(tmp_path, adapter, caplog):
    folder = changed(
        adapter,
        tmp_path / "adapter",
        lambda weights: {**weights, "other.lora_A.weight": torch.ones(2)},
        "adapter_model.safetensors",
    )
    load(folder)
    assert "holds 1 weight (other.lora_A.weight) for which its base has no place" in caplog.text


def test_missing_weights_of_its_base_are_refused(tmp_path, whole, adapter):
    base = changed(whole, tmp_path / "base", lambda weights: {k: w for k, w in weights.items() if "norm" not in k})
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(whole), str(base)))
    with pytest.raises(SimPOError, match="5 of the 21 weights that the model needs are not in"):
        load(tmp_path / "adapter")


def test_an_adapter_with_more_embeddings_makes_room_in_its_base(tmp_path, whole):
    model = load(whole)
    model.resize_token_embeddings(100)
    saved = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    saved.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    loaded = load(tmp_path / "adapter")
    torch.testing.assert_close(
        loaded.get_input_embeddings().weight, saved.get_input_embeddings().weight, rtol=0, atol=0
    )
