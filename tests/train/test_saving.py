"""What could not be saved at the end is settled or refused at the start, and weights are written all the same."""

import json
from contextlib import suppress

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from models import ARCHITECTURES, random_pairs, tiny_architecture, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.train.saving import check_saves, settle_generation, without_frozen_head

GREEDY_WITH_TEMPERATURE = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}  # as Llama-2-chat ships it


@pytest.fixture
def args(tmp_path):
    return SimPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True)


def published_model(folder, generation: dict):
    """A model whose generation configuration was written by hand."""
    tiny_model().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_can_be_saved_pass(args, name):
    check_saves(tiny_architecture(name), word_tokenizer(), args)


def test_sampling_values_beside_greedy_decoding_are_settled(tmp_path, args, caplog):
    model = published_model(tmp_path / "base", GREEDY_WITH_TEMPERATURE)
    settle_generation(model)
    check_saves(model, word_tokenizer(), args)
    assert "The trained model's will say do_sample: true" in caplog.text
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.6, 0.9)


def test_the_check_of_saving_leaves_the_model_as_it_is(tmp_path, args):
    model = published_model(tmp_path / "base", GREEDY_WITH_TEMPERATURE)
    before = model.generation_config.to_dict()
    with suppress(SimPOError):  # it depends on the version of transformers whether this model can be saved
        check_saves(model, word_tokenizer(), args)
    assert model.generation_config.to_dict() == before


def test_the_trainer_settles_sampling_values(tmp_path):
    model = published_model(tmp_path / "base", GREEDY_WITH_TEMPERATURE)
    assert make_trainer(tmp_path / "out", random_pairs(4), model=model).model.generation_config.do_sample


def test_a_sound_generation_configuration_is_left_alone(tmp_path, args, caplog):
    model = published_model(tmp_path / "base", {"do_sample": True, "temperature": 0.6})
    before = model.generation_config.to_dict()
    settle_generation(model)
    assert model.generation_config.to_dict() == before
    assert not caplog.text


def test_another_fault_of_it_is_refused(tmp_path, args):
    model = published_model(tmp_path / "base", {})
    model.generation_config.early_stopping = "perhaps"
    with pytest.raises(
        SimPOError, match=r"generation_config.json cannot be saved .*early_stopping.*Correct it, or remove"
    ):
        settle_generation(model)


@pytest.mark.parametrize("adapter", [False, True])
def test_what_cannot_be_saved_is_refused_by_name(args, adapter, monkeypatch):
    model = tiny_model()
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)) if adapter else model
    tokenizer = word_tokenizer()

    def fail(*arguments, **settings):
        raise NotImplementedError("no vocabulary file")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(SimPOError, match="The tokenizer cannot be saved, and so could not be .*no vocabulary file"):
        check_saves(model, tokenizer, args)
    saved = next(iter(model.peft_config.values())) if adapter else model
    monkeypatch.setattr(saved, "save_pretrained", fail)
    what = "The configuration of the adapter" if adapter else "The model"
    with pytest.raises(SimPOError, match=f"{what} cannot be saved"):
        check_saves(model, word_tokenizer(), args)


def test_arguments_that_cannot_be_pickled_are_refused(args):
    class Local(SimPOConfig):
        pass

    with pytest.raises(SimPOError, match="The arguments of the training cannot be saved"):
        check_saves(tiny_model(), word_tokenizer(), Local(output_dir=args.output_dir, use_cpu=True))


def test_weights_are_written_though_a_side_file_cannot_be(tmp_path):
    """The start has tried it; a callback may still spoil it on the way."""
    trainer = make_trainer(tmp_path, random_pairs(8), max_steps=1)
    trainer.train()
    trainer.model.generation_config.temperature = 0.6
    with pytest.raises(SimPOError, match="could not be saved as it should be .* its weights are in"):
        trainer.save_model(str(tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all((saved[name] == weight).all() for name, weight in trainer.model.state_dict().items())


def test_a_full_disk_is_told_as_it_is(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, random_pairs(8), max_steps=1)

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model(str(tmp_path / "out"))


@pytest.mark.parametrize("resized", [False, True])
def test_an_adapter_on_the_head_is_saved_without_the_frozen_head(tmp_path, resized):
    """Where rows were added to the base, the adapter is their only copy."""
    tiny_model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if resized:
        model.resize_token_embeddings(model.config.vocab_size + 3)
    config = LoraConfig(target_modules=["q_proj", "lm_head"], base_model_name_or_path=str(tmp_path / "base"))
    adapted = get_peft_model(model, config)
    weights = without_frozen_head(adapted, None)
    adapted.save_pretrained(tmp_path / "saved", state_dict=weights)
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors").keys()
    assert any("lm_head.lora_B" in name for name in names)
    assert any("base_layer" in name for name in names) == resized


def test_other_models_are_saved_as_they_are():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    assert without_frozen_head(model, None) is None and without_frozen_head(tiny_model(), None) is None
