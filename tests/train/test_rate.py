"""The learning rate of an adapter where none is chosen, and the warning for one that is too low."""

import logging
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from logs import warnings
from models import random_pairs, tiny_model
from runs import make_trainer
from simpo_trainer import SimPOConfig

LORA = {"peft_config": LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")}


def rate_of(folder, *, arguments=None, model=None, **settings):
    settings = {"learning_rate": None, **settings}
    return make_trainer(folder, random_pairs(2), arguments=arguments, model=model, **settings).args.learning_rate


def test_an_open_rate_follows_what_trains(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert rate_of(tmp_path) == 5e-7
    assert "10 times" not in caplog.text
    assert rate_of(tmp_path, arguments=LORA) == 5e-6
    assert "learning_rate is 5e-06, 10 times the 5e-07 for training all weights" in caplog.text
    adapted = get_peft_model(tiny_model(), LORA["peft_config"])
    assert rate_of(tmp_path, model=adapted) == 5e-6


@pytest.mark.parametrize("given", [5e-7, 3e-6, 0.05])
def test_a_given_rate_is_kept(tmp_path, caplog, given):
    caplog.set_level(logging.INFO)
    assert rate_of(tmp_path, arguments=LORA, learning_rate=given) == given
    assert "10 times" not in caplog.text


def test_a_copy_of_the_settings_leaves_the_rate_open(tmp_path):
    args = SimPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.learning_rate is None
    assert args.settled().learning_rate == 5e-7
    assert replace(args, beta=3.0).learning_rate is None


@pytest.mark.parametrize(
    ("rate", "adapter", "warned"),
    [(1e-6, True, "Set learning_rate: 1e-05"), (5e-7, True, "Set learning_rate: 5e-06"), (1e-6, False, "hardly move")],
)
def test_a_rate_for_all_weights_is_warned_of_under_an_adapter(tmp_path, caplog, rate, adapter, warned):
    arguments = LORA if adapter else {}
    trainer = make_trainer(
        tmp_path, random_pairs(2), arguments=arguments, learning_rate=rate, max_steps=1, optim="adamw_torch"
    )
    trainer.train()
    said = [text for text in warnings(caplog) if not text.startswith("health: ")]  # the monitor speaks at the end
    [warning] = [text for text in said if "learning_rate" in text or "learning rate" in text]
    assert warned in warning
    assert ("is one for training all weights" in warning) == adapter
