"""Whatever keeps a model or a tokenizer from being loaded is one short error with the way out."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from models import tiny_model, word_tokenizer
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.load import check_model_name, load_model, load_tokenizer
from simpo_trainer.model.settings import ModelSettings
from simpo_trainer.model.weights import _forget_quantization


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(good, tmp_path):
    """A copy of a whole model, to be broken."""
    return shutil.copytree(good, tmp_path / "model")


def load(folder, **kwargs):
    return load_model(str(folder), ModelSettings(model_init_kwargs=kwargs or None), adapter_follows=False, bf16=False)


def configure(folder, **values):
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SMALL_T5 = {"vocab_size": 100, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
SMALL_BERT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: T5ForConditionalGeneration(T5Config(**SMALL_T5)), "it is a T5, which is no causal language model"),
        (lambda: BertModel(BertConfig(**SMALL_BERT)), "of the 28 weights that the model needs are not in"),
    ],
)
def test_other_kinds_of_models(tmp_path, model, message):
    model().save_pretrained(tmp_path)
    with pytest.raises(SimPOError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "fancy9"}, "does not know the model type 'fancy9' of its config.json. Upgrade transformers"),
        ({"model_type": None}, "Should have a `model_type` key in its config.json"),
        ({"hidden_size": "many"}, "Field 'hidden_size' expected int, got str"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum.*Install that package"),
    ],
)
def test_configurations(broken, values, message):
    configure(broken, **values)
    with pytest.raises(SimPOError, match=f"The model '{broken}' could not be loaded: .*{message}"):
        load(broken)


@pytest.mark.parametrize("content", [b"", b"junk", None])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_torn_files(broken, name, content):
    """`None` stands for the first half of the file."""
    if name == "pytorch_model.bin":
        (broken / "model.safetensors").rename(broken / name)
    if content is None:
        halve(broken / name)
    else:
        (broken / name).write_bytes(content)
    with pytest.raises(
        SimPOError, match="could not be loaded: .*If a file is torn, copy or download it again"
    ) as caught:
        load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "junk", '{"version": "1.0"'])
def test_torn_tokenizers(broken, content):
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(SimPOError, match=f"The tokenizer of '{broken}' could not be loaded: ") as caught:
        load_tokenizer(str(broken), ModelSettings())
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(SimPOError, match="no tokenizer files .*save_pretrained.*tokenizer_name_or_path"):
        load_tokenizer(str(tmp_path), ModelSettings())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_sizes": 3}, "its loader does not take hidden_sizes. Remove that from model_init_kwargs"),
        ({"dtype": "float23"}, ".*float23.*Correct model_init_kwargs if one of them is meant"),
        ({"attn_implementation": "flash"}, 'attn_implementation="flash"` is not supported'),
    ],
)
def test_wrong_keywords(good, kwargs, message):
    with pytest.raises(SimPOError, match=f"could not be loaded: .*{message}"):
        load(good, **kwargs)


def test_code_of_a_repository_does_not_run_and_nobody_is_asked(broken, monkeypatch):
    asked = []  # not an error: transformers takes any for a no
    monkeypatch.setattr("builtins.input", lambda *args: asked.append(args) or "n")
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokens", None]}
    configure(broken, model_type="fancy9", auto_map=classes)
    (broken / "own.py").write_text("raise AssertionError('run')")
    with pytest.raises(SimPOError, match=r"brings Python code .*\{trust_remote_code: true, revision: COMMIT\}"):
        load(broken)
    load_tokenizer(str(broken), ModelSettings())  # has files that need no code
    assert not asked


def test_a_gguf_file_must_be_there(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    check_model_name(str(tmp_path), "model.gguf")
    with pytest.raises(SimPOError, match="holds no other.gguf, which model_init_kwargs name as gguf_file"):
        check_model_name(str(tmp_path), "other.gguf")
    with pytest.raises(SimPOError, match=r"holds no config.json.* set model_init_kwargs: \{gguf_file: NAME\}"):
        check_model_name(str(tmp_path))


def test_a_model_read_from_a_gguf_file_can_be_saved(tmp_path):
    """transformers refuses while the model says that it is quantised, which its float32 weights are not."""
    model = tiny_model()
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer, model.is_quantized = object(), True
    with pytest.raises(AttributeError):
        model.save_pretrained(tmp_path)
    _forget_quantization(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    load(tmp_path)


def test_what_is_loaded_from_a_gguf_file_can_be_saved(good, tmp_path, monkeypatch):
    """Without the package gguf: its model is as transformers leaves it, quantised by name alone."""

    def read(name, **kwargs):
        model = tiny_model()
        model.config.quantization_config = {"quant_method": "gguf"}
        model.hf_quantizer, model.is_quantized = object(), True
        return model, {"missing_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    (good / "model.gguf").touch()
    load(good, gguf_file="model.gguf").save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    with pytest.raises(AttributeError):
        load(good).save_pretrained(tmp_path)
