"""Names and types of arguments given in Python: wrong ones are told as in a recipe, texts of numbers are numbers."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from models import random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError


def config(**given):
    return SimPOConfig(output_dir="out", use_cpu=True, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"simpo_gamma": 1.0}, r"simpo_gamma is the margin in units of the reward.*gamma_beta_ratio: 0.5"),
        ({"simpo_gamma": 1.0, "beta": 4.0}, "gamma_beta_ratio: 0.25"),
        ({"betta": 1.0}, r"betta is no setting of SimPOConfig. Did you mean beta\?"),
        ({"evaluation_strategy": "steps"}, "Did you mean eval_strategy"),
        ({"cpo_alpha": 0.0}, "cpo_alpha is called sft_weight here"),
        ({"xyzzy": 1}, "xyzzy is no setting of SimPOConfig.$"),
    ],
)
def test_a_name_that_is_no_setting(given, message):
    with pytest.raises(SimPOError, match=message):
        config(**given)


def test_all_unknown_names_are_told_at_once():
    with pytest.raises(SimPOError, match="(?s)betta is no .*gama is no "):
        config(betta=1, gama=2)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"learning_rate": "5e-7"}, "learning_rate", 5e-7),
        ({"max_steps": "3"}, "max_steps", 3),
        ({"weight_decay": "0.1"}, "weight_decay", 0.1),
        ({"bf16": "false"}, "bf16", False),
        ({"max_length": 512.0}, "max_length", 512),
        ({"beta": 3}, "beta", 3),
        ({"beta": np.float32(2.5)}, "beta", 2.5),
        ({"loss_type": ["sigmoid", "ipo"]}, "loss_type", ["sigmoid", "ipo"]),
    ],
)
def test_a_text_of_a_number_is_that_number(given, name, value):
    found = getattr(config(**given), name)
    assert found == value and (isinstance(found, np.generic) or type(found) is type(value))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number or null"),
        ({"loss_type": 3}, "loss_type is 3; it must be text"),
        ({"beta": True}, "beta is True; it must be a number"),
        ({"max_length": [512]}, r"max_length is \[512\]; it must be a whole number"),
        ({"max_length": 512.5}, "max_length is 512.5; it must be a whole number"),
        ({"eval_strategy": "stepz"}, "eval_strategy is 'stepz'; it must be one of no, steps, epoch"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type is 'cosin'; it must be one of .*cosine"),
        ({"batch_layout": 1}, "batch_layout is 1; it must be one of auto, padded"),
    ],
)
def test_a_value_of_the_wrong_type(given, message):
    with pytest.raises(SimPOError, match=message):
        config(**given)


def test_a_subclass_with_a_setting_of_its_own():
    @dataclass
    class Own(SimPOConfig):
        temperature: float = 1.0

    found = Own(output_dir="out", use_cpu=True, temperature="0.5")
    assert (found.temperature, replace(found, beta=3.0).temperature) == (0.5, 0.5)
    with pytest.raises(SimPOError, match="Did you mean temperature"):
        Own(output_dir="out", temperatur=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ref_model": None}, "SimPOTrainer has no argument ref_model: SimPO has no reference model. Leave it out"),
        ({"tokenizer": None}, "tokenizer: it is called processing_class here"),
        ({"beta": 2.0}, r"beta: it is a setting. Write args=SimPOConfig\(beta=...\)"),
        ({"train_data": []}, r"no argument train_data. Did you mean train_dataset\?"),
        ({"args": {"beta": 2.0}}, "args is a dict; it must be a SimPOConfig"),
        ({"model": None}, "model is None; it must be a folder"),
        ({"model": 3}, "model is a int; it must be a folder"),
        ({"processing_class": "gpt2"}, "processing_class is a str; it must be a tokenizer: AutoTok"),
        ({"peft_config": {"r": 8}}, "peft_config is a dict; it must be a configuration of peft: LoraConfig"),
        (
            {"args": config(eval_strategy="steps"), "train_dataset": []},
            "eval_strategy is steps, but there is no `eval_dataset`. Pass one .*train_test_split",
        ),
    ],
)
def test_arguments_of_the_trainer(given, message):
    with pytest.raises(SimPOError, match=message):
        SimPOTrainer(**{"model": "nowhere", **given})


def test_a_subclass_of_the_trainer_keeps_its_own_arguments(tmp_path):
    class Own(SimPOTrainer):
        def __init__(self, *args, extra, **given):
            super().__init__(*args, **given)
            self.extra = extra

    arguments = {"extra": 5}
    assert make_trainer(tmp_path, random_pairs(2), trainer_class=Own, arguments=arguments).extra == 5
    with pytest.raises(SimPOError, match="Own has no argument ref_model"):
        Own(tiny_model(), config(), processing_class=word_tokenizer(), extra=5, ref_model=None)
