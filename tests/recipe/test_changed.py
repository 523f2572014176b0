"""The settings of a recipe that differ from the defaults: the same recipe, and nothing that could be left out."""

import logging

import pytest
import yaml

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.changed import changed, default_settings
from simpo_trainer.recipe.load import load_recipe, recipe_of
from simpo_trainer.recipe.paths import recipe_files

# Settings that follow from others, values that are the default of another case, and keys that need others.
CASES = [
    {},
    {"max_length": 1024},
    {"loss_type": "ipo"},
    {"loss_type": "ipo", "beta": 2.0},  # the default, but not of this loss
    {"loss_type": ["sigmoid", "ipo"], "loss_weights": [0.7, 0.3]},
    {"use_peft": True},
    {"use_peft": True, "lora_dropout": 0.05},
    {"use_peft": True, "disable_dropout": False, "lora_dropout": 0.0},
    {"use_peft": False, "lora_r": 8},
    {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    {"global_batch_size": 24},
    {"global_batch_size": 24, "per_device_train_batch_size": 8},
    {"global_batch_size": 24, "per_device_train_batch_size": 2},
    {"lr_scheduler_type": "linear", "eval_strategy": "steps", "save_strategy": "epoch"},
    {"streaming": True, "max_steps": 10},
    {"method": "dpo"},
    {"method": "dpo", "beta": 0.1, "loss_type": "ipo", "use_peft": True},
    {"method": "sft", "learning_rate": 2e-5},
    {"method": "sft", "learning_rate": 5e-7, "max_length": 512},
]


def names(case):
    return ",".join(f"{key}={value}" for key, value in case.items()) or "nothing"


@pytest.fixture
def load(tmp_path):
    def load(settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return load_recipe(path)

    return load


@pytest.mark.parametrize("case", CASES, ids=names)
def test_they_are_a_recipe_with_the_same_settings(load, case):
    recipe = load({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"} | case)
    found = changed(recipe)
    assert load(found).resolved() == recipe.resolved()
    assert list(found) == [name for name in recipe.resolved() if name in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_files())
def test_the_recipes_of_the_package(load, name):
    for overrides in ({}, {"method": "dpo"}):
        recipe = load_recipe(name, overrides)
        assert load(changed(recipe)).resolved() == recipe.resolved()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=names)
def test_none_that_is_given_could_be_left_out(load, case):
    recipe = load({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"} | case)
    found = changed(recipe)
    for name in (name for name in found if name in case):
        rest = {key: value for key, value in found.items() if key != name}
        try:
            assert recipe_of(rest, recipe.method).resolved() != recipe.resolved(), name
        except SimPOError:
            pass  # the others need it


def test_a_default_that_is_given_is_left_out(load):
    recipe = load({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "beta": 2.0, "seed": 42})
    assert changed(recipe) == {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def test_what_follows_from_a_changed_setting_is_changed(load):
    recipe = load({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "max_length": 1024})
    assert changed(recipe)["max_prompt_length"] == 900


def test_the_defaults_are_those_of_the_method():
    assert (default_settings("simpo")["learning_rate"], default_settings("sft")["learning_rate"]) == (5e-7, 2e-5)
    assert (default_settings("simpo")["beta"], default_settings("dpo")["beta"]) == (2.0, 0.01)
    assert default_settings("simpo")["lora_dropout"] == 0
    assert "output_dir" not in default_settings("simpo")


def test_warnings_come_once(load, caplog):
    recipe = load({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "fp16": True})
    changed(recipe)
    assert caplog.text.count("fp16 overflows") == 1
    assert logging.root.manager.disable == logging.NOTSET
