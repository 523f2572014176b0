"""The recipes that come with the package: each resolves, is documented, and says the numbers it is for."""

import re
from pathlib import Path

import pytest

from simpo_trainer.recipe.keys import keys_of
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.recipe.paths import recipe_files, recipes_folder

FOLDER = recipes_folder()
FILES = sorted(FOLDER.rglob("*.y*ml"))
RECIPES = recipe_files()
SHARED = [path for path in FILES if path.name.startswith("_")]


def test_the_search_goes_through_all_folders():
    assert {"quickstart", "paper/llama3-8b-base", "sizes/70b"} <= RECIPES.keys()
    launchers = [path for path in FILES if path.parent.name in ("accelerate", "launch")]
    assert len(FILES) == len(RECIPES) + len(SHARED) + len(launchers)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert set(recipe.settings) <= set(keys_of(recipe.method))
    assert recipe.notices == []  # no aged keys in files of today


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_begins_with_what_a_reader_needs(name):
    header = [line for line in RECIPES[name].read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert re.match("# Purpose: ", text)
    for part in ("# Hardware: ", "# Launch: simpo train ", "# Outcome"):
        assert part in text
    assert ("# Numbers: " in text) or name == "quickstart"
    launch = re.search("# Launch: simpo train ([^ ]+)", text)
    assert launch and launch[1].removeprefix("recipes/").removesuffix(".yaml") == name


def test_shared_parts_are_extended():
    texts = [path.read_text() for path in RECIPES.values()]
    assert SHARED
    for path in SHARED:
        assert any(re.search(rf"^extends: .*{path.name}$", text, re.MULTILINE) for text in texts)


# Table of the paper's settings: model, data, beta, ratio, learning rate, max_length, max_prompt_length.
_UF = "HuggingFaceH4/ultrafeedback_binarized"
PAPER = {
    "mistral-7b-base": ("alignment-handbook/zephyr-7b-sft-full", _UF, 2.0, 0.8, 3e-7, 1024, 512),
    "mistral-7b-instruct": (
        "mistralai/Mistral-7B-Instruct-v0.2",
        *("princeton-nlp/mistral-instruct-ultrafeedback", 2.5, 0.1, 5e-7, 2048, 1800),
    ),
    "llama3-8b-base": ("princeton-nlp/Llama-3-Base-8B-SFT", _UF, 2.0, 0.5, 6e-7, 2048, 1800),
    "llama3-8b-instruct": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        *("princeton-nlp/llama3-ultrafeedback", 2.5, 0.55, 1e-6, 2048, 1800),
    ),
    "llama3-8b-instruct-v0.2": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        *("princeton-nlp/llama3-ultrafeedback-armorm", 10.0, 0.3, 1e-6, 2048, 1800),
    ),
    "gemma2-9b-it": (
        "google/gemma-2-9b-it",
        *("princeton-nlp/gemma2-ultrafeedback-armorm", 10.0, 0.5, 8e-7, 2048, 1800),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    recipe = load_recipe(f"paper/{name}")
    training, data = recipe.training.settled(), recipe.data
    assert PAPER[name] == (
        *(recipe.model.model_name_or_path, data.dataset_name, training.beta, training.gamma_beta_ratio),
        *(training.learning_rate, training.max_length, training.max_prompt_length),
    )
    prefs = data.dataset_name == _UF
    splits = ("train_prefs", "test_prefs") if prefs else ("train", "test")
    assert (data.dataset_train_split, data.dataset_test_split) == splits
    assert (training.global_batch_size, training.num_train_epochs, training.seed) == (128, 1, 42)
    assert (training.lr_scheduler_type.value, training.warmup_steps) == ("cosine", 0.1)
    assert (training.sft_weight, training.label_smoothing, training.loss_type) == (0.0, 0.0, "sigmoid")
    assert training.gradient_checkpointing and recipe.settings["bf16"] is True
    assert recipe.model.attn_implementation == ("eager" if name.startswith("gemma") else None)


# Learning rates of the paper's DPO runs.
DPO_RATES = {
    "mistral-7b-base": 5e-7,
    "mistral-7b-instruct": 5e-7,
    "llama3-8b-base": 5e-7,
    "llama3-8b-instruct": 7e-7,
    "llama3-8b-instruct-v0.2": 3e-7,
}


@pytest.mark.parametrize("name", DPO_RATES)
def test_the_papers_dpo_runs_differ_in_the_method_alone(name):
    simpo, dpo = load_recipe(f"paper/{name}"), load_recipe(f"paper/{name}-dpo")
    assert (dpo.method, dpo.baseline.beta, dpo.baseline.learning_rate) == ("dpo", 0.01, DPO_RATES[name])
    assert dpo.baseline.loss_type == ["sigmoid"]
    own = {"method", "beta", "gamma_beta_ratio", "loss_type", "learning_rate", "output_dir"}
    own |= {"per_device_train_batch_size"}  # a reference model takes its place
    assert {key: value for key, value in dpo.settings.items() if key not in own} == {
        key: value for key, value in simpo.settings.items() if key not in own
    }
    assert dpo.training.output_dir != simpo.training.output_dir


def test_the_stage_before_the_preference_training():
    recipe = load_recipe("paper/llama3-8b-base-sft")
    training, data = recipe.baseline, recipe.data
    assert (recipe.method, training.learning_rate, training.num_train_epochs) == ("sft", 2e-5, 1)
    assert (data.dataset_name, data.dataset_train_split) == ("HuggingFaceH4/ultrachat_200k", "train_sft")
    assert recipe.model.model_name_or_path == "meta-llama/Meta-Llama-3-8B"
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 128
    assert (training.lr_scheduler_type, training.warmup_steps, training.gradient_checkpointing) == ("cosine", 0.1, True)


def test_every_setting_of_the_paper_has_a_recipe():
    expected = {*PAPER, *(f"{name}-dpo" for name in DPO_RATES), "llama3-8b-base-sft"}
    assert {name.removeprefix("paper/") for name in RECIPES if name.startswith("paper/")} == expected


# Starting points by size: beta, ratio, range of the learning rate, sft_weight of an instruct model, pairs per device.
SIZES = {
    "1b-3b": (2.0, 0.5, (5e-7, 1e-6), 0.1, 4),
    "7b-8b": (2.0, 0.5, (3e-7, 5e-7), 0.1, 2),
    "8b-13b": (2.5, 0.5, (3e-7, 3e-7), 0.1, 1),
    "13b-30b": (2.5, 0.5, (1e-7, 3e-7), 0.1, 1),
    "70b": (2.0, 0.5, (5e-8, 1e-7), 0.05, 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes(name):
    beta, ratio, (lowest, highest), sft_weight, pairs = SIZES[name]
    instruct, base = load_recipe(f"sizes/{name}"), load_recipe(f"sizes/{name}-base")
    for recipe in (instruct, base):
        training = recipe.training
        assert (training.beta, training.gamma_beta_ratio) == (beta, ratio)
        assert lowest <= training.learning_rate <= highest
        assert training.per_device_train_batch_size == pairs
        assert training.global_batch_size == (64 if name == "70b" else 128)
    assert (instruct.training.settled().sft_weight, base.training.settled().sft_weight) == (sft_weight, 0.0)
    assert instruct.model.model_name_or_path != base.model.model_name_or_path
    assert instruct.training.output_dir != base.training.output_dir
    assert "--launcher" in RECIPES[f"sizes/{name}"].read_text()


def test_recipes_name_launchers_that_exist():
    launchers = {path.stem for path in (FOLDER / "accelerate").glob("*.yaml")}
    for path in RECIPES.values():
        named = re.findall(r"--launcher (\w+)", Path(path).read_text())
        assert set(named) <= launchers, path


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("lora")])
def test_recipes_of_adapters_have_ten_times_the_rate_of_their_size(name):
    full = load_recipe(name.replace("-qlora", "").replace("-lora", ""))
    adapted = load_recipe(name)
    assert adapted.model.use_peft and not full.model.use_peft
    assert adapted.model.load_in_4bit == name.endswith("-qlora")
    assert adapted.training.learning_rate == pytest.approx(10 * full.training.learning_rate)
