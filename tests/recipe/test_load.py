"""Recipes: what is read, what is converted, and what each mistake is told."""

import json
from dataclasses import fields

import pytest
import torch
import yaml

from simpo_trainer.baselines.settings import MethodConfig
from simpo_trainer.data.settings import DataConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import AnswerKeys
from simpo_trainer.recipe.keys import KEYS
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.recipe.model_keys import ModelKeys
from simpo_trainer.train.config import SimPOConfig
from simpo_trainer.train.other_trainers import OTHER_TRAINERS

BASE = "model_name_or_path: some/model\ndataset_name: some/pairs\noutput_dir: runs/test\n"


@pytest.fixture
def load(tmp_path):
    def load(text="", overrides=(), base=BASE):
        path = tmp_path / "recipe.yaml"
        path.write_text(base + text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


def test_keys_go_to_their_owners(load):
    recipe = load("beta: 2.5\nlora_r: 8\nuse_peft: true\ndataset_train_split: train_prefs\n")
    assert (recipe.training.beta, recipe.model.lora_r, recipe.data.dataset_train_split) == (2.5, 8, "train_prefs")
    assert recipe.model.model_name_or_path == "some/model"
    assert recipe.training.output_dir == "runs/test"
    assert recipe.settings["lora_r"] == 8
    assert recipe.origins["lora_r"] == "recipe.yaml:5"


def test_no_key_has_two_owners():
    owners = (SimPOConfig, DataConfig, ModelKeys, MethodConfig, AnswerKeys)
    names = [field.name for owner in owners for field in fields(owner)]
    assert len(names) == len(set(names)) == len(KEYS)


def test_every_default_fits_its_own_type(load):
    """What a user reads as a default can be written into a recipe."""
    defaults = {
        name: getattr(key.field.default, "value", key.field.default)
        for name, key in KEYS.items()
        if key.field.default_factory.__class__.__name__ == "_MISSING_TYPE" and name not in BASE
    }
    assert len(defaults) > 100
    load("".join(f"{name}: {json.dumps(value)}\n" for name, value in defaults.items()))


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 5e-7", "learning_rate", 5e-7),  # YAML 1.1 reads this as text
        ("learning_rate: '1e-6'", "learning_rate", 1e-6),
        ("num_train_epochs: 1", "num_train_epochs", 1.0),
        ("max_steps: 3.0", "max_steps", 3),
        ("use_cpu: yes", "use_cpu", True),
        ("eval_strategy: no", "eval_strategy", "no"),  # YAML 1.1 reads this as false
        ("save_strategy: epoch", "save_strategy", "epoch"),
        ("lr_scheduler_kwargs: {min_lr: 1e-8}", "lr_scheduler_kwargs", {"min_lr": 1e-8}),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("lr_scheduler_kwargs: {factor: 2.e-1}", "lr_scheduler_kwargs", {"factor": 0.2}),
    ],
)
def test_values_are_converted(load, line, key, value):
    found = getattr(load(line).training, key)
    assert found == value
    assert isinstance(found, type(value))


def test_lists_of_adapter_targets(load):
    assert load("use_peft: true\nlora_target_modules: [a, b]").model.lora_target_modules == ["a", "b"]
    assert load("use_peft: true\nlora_target_modules: all-linear").model.lora_target_modules == "all-linear"
    assert load("use_peft: true\nlora_modules_to_save: lm_head").model.lora_modules_to_save == ["lm_head"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat: 1e-6", r"recipe.yaml: line 4: unknown key learning_rat. Did you mean learning_rate\?"),
        ("learning-rate: 1e-6", r"unknown key learning-rate. Did you mean learning_rate\?"),
        ("qqqqq: 1", "unknown key qqqqq. `simpo train --help` lists the keys.$"),
        ("learning_rate: abc", 'line 4: learning_rate is "abc"; it must be a number'),
        ("beta: true", "beta is true; it must be a number"),
        ("beta: .nan", "beta is NaN; it must be a number"),
        ("num_train_epochs:", "num_train_epochs is null; it must be a number"),
        ("max_length: true", "max_length is true; it must be a whole number"),
        ("max_steps: 1.5", "max_steps is 1.5; it must be a whole number"),
        ("use_cpu: 2", "use_cpu is 2; it must be true or false"),
        ("model_revision: 5", "model_revision is 5; it must be text"),
        ("save_total_limit: None", 'save_total_limit is "None"; it must be a whole number or null'),
        ("dtype: bf16", 'dtype is "bf16"; it must be one of auto, bfloat16, float16, float32 or null'),
        ("eval_strategy: step", 'eval_strategy is "step"; it must be one of no, steps, epoch'),
        ("lr_scheduler_type: cosin", 'lr_scheduler_type is "cosin"; it must be .*cosine'),
        ("optim: adamw_torchfused", "one of [0-9]+ names, such as adamw_torch_fused"),
        ("overlong: cut", 'overlong is "cut"; it must be one of truncate, official, drop, error'),
        ("model_init_kwargs: abc", 'model_init_kwargs is "abc"; it must be a mapping or null'),
        ("lora_target_modules: {a: 1}", "lora_target_modules is .*; it must be a list or null"),
        ("output_dir: again", "line 4: output_dir is given twice, first on line 3. Keep one"),
        ("lr_scheduler_kwargs: {a: 1, a: 2}", "line 4: a is given twice, first on line 4"),
    ],
)
def test_wrong_keys_and_values(load, line, message):
    with pytest.raises(SimPOError, match=message):
        load(line)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("simpo_gamma: 1.0\nbeta: 2.5", r"gamma / beta. Write gamma_beta_ratio: 0.4 \(1.0 / beta 2.5\)"),
        ("simpo_gamma: 1.0", r"Write gamma_beta_ratio: 0.5 \(1.0 / beta 2.0, the default\)"),
        ("gamma: 0.5\npref_beta: 0.1", r"Write gamma_beta_ratio: 5 \(0.5 / beta 0.1\)"),
        ("gamma: 0.5\nbeta: 0", "Write gamma_beta_ratio and that number"),
        ("pref_beta: 2.5", "pref_beta: is called beta here. Write beta: 2.5"),
        ("rl_beta: 0.1", "rl_beta: is called beta here. Write beta: 0.1"),
        ("cpo_alpha: 0.2", "Write sft_weight: 0.2, and sft_reduction: token"),
        ("pref_ftx: 0.3", "Write sft_weight: 0.3"),
        ("pref_loss: simpo", "pref_loss: is not needed: loss_type chooses the loss"),
        ("rl: simpo", "rl: is not needed.*Leave it out"),
        ("loss_type: simpo", "Write loss_type: sigmoid, or leave it out"),
        ("dpo_label_smoothing: 0.1", "Write label_smoothing: 0.1"),
        ("max_completion_length: 512\nmax_prompt_length: 1024", "Write max_length: 1536"),
        ("max_completion_length: 512\nmax_length: 1024", "Write max_prompt_length: 512"),
        ("max_completion_length: 512", "Write max_prompt_length: 1536"),
        ("max_completion_length: long", "Write max_length and max_prompt_length"),
    ],
)
def test_keys_of_other_trainers_are_converted(load, lines, message):
    with pytest.raises(SimPOError, match=message):
        load(lines)


def test_keys_of_other_trainers_never_hide_one_of_ours():
    assert OTHER_TRAINERS.keys() & KEYS.keys() == {"loss_type"}


def test_all_problems_come_at_once(load):
    with pytest.raises(SimPOError, match="recipe.yaml: 4 problems") as caught:
        load("learning_rat: 1\nbeta: abc\nsimpo_gamma: 1\nbeta: 2", ["stray"])
    for part in ("unknown key learning_rat. Did", "gamma_beta_ratio: 0.5", "given twice", "unexpected 'stray'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model_name_or_path", "is missing: the model to start from"),
        ("dataset_name", "is not set; training needs preference pairs"),
        ("output_dir", "is missing: the folder"),
    ],
)
def test_what_a_run_cannot_do_without(load, key, message):
    with pytest.raises(SimPOError, match=f"recipe.yaml: {key} {message}"):
        load(base="".join(line for line in BASE.splitlines(keepends=True) if not line.startswith(key)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: [1, 2", "recipe.yaml, line 1, column 12: not valid YAML: expected ',' or ']'"),
        ("beta: 1\n\tx: 2", "line 2, column 1: not valid YAML: found character .* that cannot start"),
        ("beta: \x00", "not valid YAML: unacceptable character"),
        ("[a]: 1\n? [b]\n: 2", "not valid YAML: found unhashable key"),
        ("- beta\n- 2", "holds a list; a recipe is a mapping"),
        ("just text", "holds a str; a recipe is a mapping"),
        ("", "recipe.yaml is empty"),
        ("# only a comment\n", "recipe.yaml is empty"),
    ],
)
def test_files_that_are_no_recipe(load, text, message):
    with pytest.raises(SimPOError, match=message):
        load(text, base="")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SimPOError, match="is a folder. Name one YAML file"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("output_dir: é".encode("latin-1"))
    with pytest.raises(SimPOError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--beta", "2.5"], "beta", 2.5),
        (["--beta=2.5"], "beta", 2.5),
        (["--learning-rate", "1e-6"], "learning_rate", 1e-6),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--beta", "3", "--beta", "4"], "beta", 4.0),
        (["--push_to_hub", "--beta", "3"], "push_to_hub", True),
        (["--no-disable-dropout"], "disable_dropout", False),
        (["--disable_dropout", "false"], "disable_dropout", False),
        (["--run_name", "7"], "run_name", "7"),
        (["--run_name", "a # b: c"], "run_name", "a # b: c"),
        (["--run_name", "'7'"], "run_name", "7"),
        (["--run_name", "[unfinished"], "run_name", "[unfinished"),
        (["--run_name="], "run_name", None),
        (["--include_for_metrics", "[inputs, loss]"], "include_for_metrics", ["inputs", "loss"]),
        (["--lr_scheduler_kwargs", "{min_lr: 1e-8}"], "lr_scheduler_kwargs", {"min_lr": 1e-8}),
        (["--resume_from_checkpoint"], "resume_from_checkpoint", True),
        ({"beta": 2.5, "run_name": "x"}, "beta", 2.5),
        ({"save_total_limit": None}, "save_total_limit", None),
    ],
)
def test_overrides(load, words, key, value):
    recipe = load("beta: 9\nsave_total_limit: 3", words)
    found = getattr(recipe.training, key)
    assert found == value
    assert isinstance(found, type(value))
    assert recipe.settings[key] == value
    assert (recipe.origins[key], recipe.origins["output_dir"]) == ("command line", "recipe.yaml:3")


def test_overrides_are_kept_for_the_resume_command(load):
    assert load(overrides=["--push-to-hub", "--no-bf16", "--beta=3"]).overrides == {
        "push_to_hub": "true",
        "bf16": "false",
        "beta": "3",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "abc"], 'command line: beta is "abc"; it must be a number'),
        (["--beta"], "command line: beta is true; it must be a number"),
        (["--bta", "2"], r"command line: unknown key bta. Did you mean beta\?"),
        (["--no-beta"], "command line: unknown key no_beta"),
        (
            ["--lora_target_modules", "a", "b"],
            r"unexpected 'b'; overrides are --key value, and a list is --key '\[a, b\]'",
        ),
        (["--simpo_gamma", "1.25", "--beta", "2.5"], "command line: simpo_gamma: .*gamma_beta_ratio: 0.5"),
    ],
)
def test_wrong_overrides(load, words, message):
    with pytest.raises(SimPOError, match=message):
        load("", words)


def test_an_override_mends_the_file(load):
    assert load("beta: abc", ["--beta", "2"]).training.beta == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("beta: -1", "recipe.yaml: beta is -1.0; it must be above 0"),
        ("load_best_model_at_end: true", "recipe.yaml: --load_best_model_at_end requires the save and eval strategy"),
        ("fsdp: true\nfsdp_config: nowhere.json", "recipe.yaml: .*nowhere.json"),
        ("accelerator_config: {nothing_known: 1}", "recipe.yaml: .*nothing_known"),
        ("load_in_4bit: true", "something must train. Set use_peft: true"),
        ("load_in_4bit: true\nload_in_8bit: true", "recipe.yaml: You can't use 8 bit and 4 bit"),
        ("lora_r: 8\nlora_alpha: 16", "lora_r, lora_alpha would do nothing: the whole model trains. Set use_peft"),
        (
            "attn_implementation: eager\nmodel_init_kwargs: {attn_implementation: sdpa}",
            "attn_implementation is given both",
        ),
    ],
)
def test_settings_that_cannot_work(load, lines, message):
    with pytest.raises(SimPOError, match=message):
        load(lines)


def test_a_package_that_transformers_misses(load, monkeypatch):
    def needs_package(config):
        raise ImportError("deepspeed was not found")

    monkeypatch.setattr(SimPOConfig, "__post_init__", needs_package)
    with pytest.raises(SimPOError, match="recipe.yaml: deepspeed was not found"):
        load()


def test_model_init_kwargs_say_only_what_the_recipe_says(load):
    assert load().training.model_init_kwargs == {}
    recipe = load(
        "model_revision: v1\nattn_implementation: eager\ndtype: float32\nmodel_init_kwargs: {use_kernels: true}"
    )
    assert recipe.training.model_init_kwargs == {
        "revision": "v1",
        "attn_implementation": "eager",
        "dtype": "float32",
        "use_kernels": True,
    }


def test_home_is_expanded(load, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    recipe = load(base=BASE.replace("some/model", "~/model"))
    assert recipe.model.model_name_or_path == "/somewhere/model"


def test_resolved_settings_are_a_recipe_that_says_the_same(load, tmp_path):
    given = "beta: 3\nglobal_batch_size: 64\neval_strategy: no\nlr_scheduler_kwargs: {a: 1e-8}\nhub_token: hf_secret\n"
    recipe = load(given, ["--run_name", "it's # 1"])
    found = recipe.resolved()
    assert (found["beta"], found["eval_strategy"], found["run_name"]) == (3.0, "no", "it's # 1")
    assert found["max_prompt_length"] == 1800  # a default
    # Decided by the machine, derived, without meaning here, or secret.
    for name in ("use_cpu", "bf16", "gradient_accumulation_steps", "lora_r", "bnb_4bit_quant_type", "hub_token"):
        assert name not in found
    assert load("use_peft: true\n").resolved()["lora_r"] == 16
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(found))
    assert load_recipe(tmp_path / "again.yaml").resolved() == found


@pytest.mark.parametrize("source", ["dataset_name: p", "dataset_mixer: {p: 1.0}", "datasets: [{path: p}]"])
def test_any_kind_of_source_will_do(load, source):
    base = "model_name_or_path: m\noutput_dir: o\n"
    load(source, base=base)
    with pytest.raises(SimPOError, match="dataset_name is not set; .* or give several sources by dataset_mixer"):
        load(source.split(":")[0] + ":", base=base)


def test_the_data_section_is_checked_with_the_rest(load):
    with pytest.raises(SimPOError, match="2 problems") as caught:
        load("bta: 3\ndataset_mixer: {a: 2}\n", base="model_name_or_path: m\noutput_dir: o\n")
    assert "the fraction of a is 2" in str(caught.value)
    # A key that was not understood is not called missing as well.
    with pytest.raises(SimPOError) as caught:
        load("dataset_name: [a]\n", base="model_name_or_path: m\noutput_dir: o\n")
    assert "dataset_name is [" in str(caught.value) and "is not set" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-process", "2"], "--num-processes is an option of `simpo train`, and no setting of a recipe"),
        (["--launcher", "ddp"], "--launcher is an option of `simpo train`"),
    ],
)
def test_options_that_are_no_settings(load, words, message):
    with pytest.raises(SimPOError, match=message):
        load("", words)


def test_what_yaml_does_not_read_as_text(load):
    with pytest.raises(SimPOError, match="run_name is .*2024-01-01.*; it must be text; put it in quotes or null"):
        load("run_name: 2024-01-01\n")


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n{}\n")
    with pytest.raises(SimPOError, match="pairs.jsonl is data, not a recipe. Write a recipe .* with dataset_name"):
        load_recipe(tmp_path / "pairs.jsonl")
    (tmp_path / "set.yaml").write_text("!!set {a, b}\n")
    with pytest.raises(SimPOError, match="holds a set; a recipe is a mapping"):
        load_recipe(tmp_path / "set.yaml")


@pytest.mark.parametrize(("engine", "stored"), [("true", torch.float32), ("false", torch.uint8)])
def test_four_bits_are_stored_as_fsdp_can_split_them(tmp_path, monkeypatch, engine, stored):
    """It leaves whole, on each process, what is no floating type."""
    pytest.importorskip("bitsandbytes", reason="make install-scale")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", engine)
    monkeypatch.setenv("FSDP_VERSION", "2")
    (tmp_path / "recipe.yaml").write_text(BASE + "use_cpu: true\nuse_peft: true\nload_in_4bit: true\n")
    loaded = load_recipe(str(tmp_path / "recipe.yaml"))
    assert loaded.training.model_init_kwargs["quantization_config"].bnb_4bit_quant_storage == stored
