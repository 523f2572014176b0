"""The facts of a recipe tell for each setting the value that it has without being given."""

import pytest

from simpo_trainer.recipe.facts import recipe_facts
from simpo_trainer.recipe.load import load_recipe

BASE = "model_name_or_path: m\noutput_dir: o\ndataset_name: org/pairs\n"


@pytest.mark.parametrize(
    ("given", "defaults"),
    [
        ("beta: 3\nlearning_rate: 1e-6\n", {"beta": 2.0, "learning_rate": 5e-7}),
        ("loss_type: cpo\nbeta: 0.5\n", {"loss_type": "sigmoid", "beta": 0.1}),
        ("use_peft: true\nlearning_rate: 1e-5\nlora_r: 8\n", {"use_peft": False, "learning_rate": 5e-6, "lora_r": 16}),
        ("method: dpo\nbeta: 0.3\nlr_scheduler_type: linear\n", {"beta": 0.01, "lr_scheduler_type": "cosine"}),
        ("method: dpo\nuse_peft: true\nlearning_rate: 1e-5\n", {"use_peft": False, "learning_rate": 5e-6}),
        ("method: sft\nuse_peft: true\nlearning_rate: 1e-5\n", {"use_peft": False, "learning_rate": 2e-4}),
        ("num_train_epochs: 2\nseed: 1\nmax_prompt_length: 10\n", {"num_train_epochs": 1.0, "seed": 42}),
    ],
)
def test_what_a_setting_would_be_otherwise(tmp_path, given, defaults):
    (tmp_path / "r.yaml").write_text(BASE + given)
    found = recipe_facts(load_recipe(tmp_path / "r.yaml"))
    assert {name: found.defaults[name] for name in defaults} == defaults
    assert found.defaults["output_dir"] is None and found.defaults.keys() <= found.settings.keys() | {"method"}
