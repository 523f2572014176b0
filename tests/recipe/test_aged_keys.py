"""The official SimPO files and the alignment handbook's keys: read as they were meant, each with a notice."""

import pytest
import yaml

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.aged_keys import _AGED
from simpo_trainer.recipe.keys import KEYS
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.train.other_trainers import OTHER_TRAINERS

# What differs between the six files of the official repository: model, attention, data, splits, beta, ratio, learning
# rate, lengths.
_UF, _TEST = "HuggingFaceH4/ultrafeedback_binarized", ["train_prefs", "test_prefs"]
_LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
_OWN = ["train", "test"]
_FLASH = "flash_attention_2"
OFFICIAL = {
    "mistral-7b-base": ("alignment-handbook/zephyr-7b-sft-full", _FLASH, _UF, _TEST, 2.0, 0.8, 3.0e-7, 1024, 512),
    "mistral-7b-instruct": (
        "mistralai/Mistral-7B-Instruct-v0.2",
        *(_FLASH, "princeton-nlp/mistral-instruct-ultrafeedback", _OWN, 2.5, 0.1, 5.0e-7, 2048, 1800),
    ),
    "llama3-8b-base": ("princeton-nlp/Llama-3-Base-8B-SFT", _FLASH, _UF, _TEST, 2.0, 0.5, 6.0e-7, 2048, 1800),
    "llama3-8b-instruct": (
        _LLAMA,
        *(_FLASH, "princeton-nlp/llama3-ultrafeedback", _OWN, 2.5, 0.55, 1.0e-6, 2048, 1800),
    ),
    "llama3-8b-instruct-v0.2": (
        _LLAMA,
        *(_FLASH, "princeton-nlp/llama3-ultrafeedback-armorm", _OWN, 10, 0.3, 1.0e-6, 2048, 1800),
    ),
    "gemma2-9b-it": (
        "google/gemma-2-9b-it",
        *("eager", "princeton-nlp/gemma2-ultrafeedback-armorm", _OWN, 10, 0.5, 8.0e-7, 2048, 1800),
    ),
}


def official_file(name):
    """The text of an official file: the keys and values as they are there, in the same order."""
    model, attention, data, splits, beta, ratio, rate, length, prompt = OFFICIAL[name]
    template = {"chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"}
    settings = {
        "model_name_or_path": model,
        "torch_dtype": None,
        "attn_implementation": attention,
        **(template if name.startswith("gemma") else {}),
        "dataset_mixer": {data: 1.0},
        "dataset_splits": splits,
        "preprocessing_num_workers": 12,
        **{"bf16": True, "beta": beta, "gamma_beta_ratio": ratio, "do_eval": True, "evaluation_strategy": "steps"},
        **{"eval_steps": 400, "gradient_accumulation_steps": 16, "gradient_checkpointing": True},
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        **{"hub_model_id": "simpo-exps", "learning_rate": rate, "log_level": "info", "logging_steps": 5},
        **{"lr_scheduler_type": "cosine", "max_length": length, "max_prompt_length": prompt, "num_train_epochs": 1},
        **{"optim": "adamw_torch", "output_dir": f"outputs/{name}-simpo", "run_name": f"{name}-simpo"},
        **{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "push_to_hub": False},
        **{"save_strategy": "steps", "save_steps": 1000000, "report_to": ["wandb"], "save_total_limit": 20},
        **{"seed": 42, "warmup_ratio": 0.1},
    }
    return yaml.safe_dump(settings, sort_keys=False)


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_loads_unchanged_and_means_the_same(tmp_path, name):
    path = tmp_path / "official.yaml"
    path.write_text(official_file(name))
    recipe = load_recipe(path)
    model, attention, data, splits, beta, ratio, rate, length, prompt = OFFICIAL[name]
    training = recipe.training.settled()
    assert recipe.model.model_name_or_path == model
    assert (training.beta, training.gamma_beta_ratio, training.learning_rate) == (beta, ratio, rate)
    assert (training.max_length, training.max_prompt_length) == (length, prompt)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 16)
    assert (training.eval_strategy.value, training.eval_steps) == ("steps", 400)
    assert (training.warmup_steps, training.lr_scheduler_type.value, training.num_train_epochs) == (0.1, "cosine", 1)
    assert (training.bf16, training.gradient_checkpointing, training.seed) == (True, True, 42)
    assert training.dataset_num_proc == 12
    assert training.model_init_kwargs == {"attn_implementation": attention}  # no dtype: float32 where weights train
    assert (recipe.data.dataset_mixer, recipe.data.dataset_splits) == ({data: 1.0}, splits)
    assert (training.sft_weight, training.loss_type, training.label_smoothing) == (0.0, "sigmoid", 0.0)
    assert [notice.split(":")[1].strip() for notice in recipe.notices] == [
        "torch_dtype",
        "preprocessing_num_workers",
        "evaluation_strategy",
        "warmup_ratio",
        "max_prompt_length is read with overlong",
    ]
    assert training.overlong == "official" and recipe.origins["overlong"].endswith("(max_prompt_length)")
    assert (
        recipe.origins["warmup_steps"].startswith("official.yaml:")
        and "(warmup_ratio)" in recipe.origins["warmup_steps"]
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_our_recipe_of_a_setting_is_the_official_file(tmp_path, name):
    """At four processes, which the official files are written for, both give the same optimiser steps."""
    path = tmp_path / "official.yaml"
    path.write_text(official_file(name))
    ours, theirs = load_recipe(f"paper/{name}"), load_recipe(path)
    assert ours.model.model_name_or_path == theirs.model.model_name_or_path
    for key in (
        *("beta", "gamma_beta_ratio", "learning_rate", "sft_weight", "loss_type", "label_smoothing", "seed"),
        *("max_length", "max_prompt_length", "overlong", "truncation_mode", "num_train_epochs", "lr_scheduler_type"),
        *("warmup_steps", "bf16", "gradient_checkpointing", "weight_decay", "adam_beta2", "max_grad_norm"),
        *("per_device_train_batch_size", "average_log_prob"),
    ):
        assert getattr(ours.training.settled(), key) == getattr(theirs.training.settled(), key), key
    assert ours.training.global_batch_size == 4 * 2 * theirs.training.gradient_accumulation_steps == 128
    [(data, fraction)] = theirs.data.dataset_mixer.items()
    assert (ours.data.dataset_name, fraction) == (data, 1.0)
    assert [ours.data.dataset_train_split, ours.data.dataset_test_split] == theirs.data.dataset_splits


def official_sft_file():
    """The seventh file, of the stage before: its keys and values as they are there."""
    settings = {
        **{"model_name_or_path": "meta-llama/Meta-Llama-3-8B", "model_revision": "main", "torch_dtype": "bfloat16"},
        **{"use_flash_attention_2": True, "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
        **{"dataset_mixer": {"HuggingFaceH4/ultrachat_200k": 1.0}, "dataset_splits": ["train_sft", "test_sft"]},
        **{"preprocessing_num_workers": 12, "bf16": True, "do_eval": True, "evaluation_strategy": "steps"},
        **{"eval_steps": 200, "gradient_accumulation_steps": 4, "gradient_checkpointing": True},
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        **{"hub_model_id": "zephyr-7b-sft-full", "hub_strategy": "every_save", "learning_rate": 2.0e-05},
        **{"log_level": "info", "logging_steps": 5, "logging_strategy": "steps", "lr_scheduler_type": "cosine"},
        **{"max_seq_length": 2048, "max_steps": -1, "num_train_epochs": 1, "output_dir": "checkpoints/llama-3-8b-sft"},
        **{"run_name": "llama-3-8b-sft", "overwrite_output_dir": True, "per_device_eval_batch_size": 8},
        **{"per_device_train_batch_size": 8, "push_to_hub": False, "remove_unused_columns": True},
        **{"report_to": ["wandb"], "save_strategy": "steps", "save_steps": 1000000, "save_total_limit": 1},
        **{"seed": 42, "warmup_ratio": 0.1},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def test_the_official_sft_file_loads_unchanged(tmp_path):
    path = tmp_path / "official.yaml"
    path.write_text(official_sft_file())
    recipe = load_recipe(path, ["--method", "sft"])
    training, shared = recipe.baseline, recipe.training
    assert recipe.method == "sft"
    assert (training.learning_rate, training.num_train_epochs, training.max_steps) == (2e-5, 1, -1)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (8, 4)
    assert (training.eval_strategy.value, training.eval_steps, training.warmup_steps) == ("steps", 200, 0.1)
    assert (training.bf16, training.gradient_checkpointing, training.hub_strategy.value) == (True, True, "every_save")
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert (shared.max_length, shared.dataset_num_proc, training.dataset_num_proc) == (2048, 12, 12)
    assert shared.model_init_kwargs == {"attn_implementation": _FLASH, "dtype": "bfloat16"}
    assert recipe.data.dataset_splits == ["train_sft", "test_sft"]
    told = [notice.split(":")[1].strip() for notice in recipe.notices]
    assert told == [
        *("torch_dtype", "use_flash_attention_2", "preprocessing_num_workers", "evaluation_strategy"),
        *("max_seq_length", "overwrite_output_dir", "remove_unused_columns", "warmup_ratio"),
    ]
    with pytest.raises(SimPOError, match="max_seq_length: is a key of SFT files. Add method: sft"):
        load_recipe(path)


@pytest.fixture
def load(tmp_path):
    def load(text, overrides=()):
        path = tmp_path / "recipe.yaml"
        path.write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: o\n" + text)
        return load_recipe(path, overrides)

    return load


@pytest.mark.parametrize(
    ("line", "settings", "notice"),
    [
        ("torch_dtype: null", {}, "line 4: torch_dtype: null is left out: null meant float32 weights"),
        ("torch_dtype: bfloat16", {"dtype": "bfloat16"}, "torch_dtype: bfloat16 is read as dtype: bfloat16"),
        ("evaluation_strategy: no", {"eval_strategy": "no"}, "is read as eval_strategy: no"),
        ("evaluation_strategy: epoch", {"eval_strategy": "epoch"}, "is read as eval_strategy: epoch"),
        (
            "warmup_ratio: 0.05",
            {"warmup_steps": 0.05},
            "read as warmup_steps: 0.05 .below 1 it is a share of all steps",
        ),
        ("warmup_ratio: 0", {"warmup_steps": 0.0}, "read as warmup_steps: 0"),
        ("use_flash_attention_2: true", {"attn_implementation": _FLASH}, "read as attn_implementation: flash"),
        ("use_flash_attention_2: false", {}, "is left out: it is off"),
        (
            "trust_remote_code: false",
            {"model_init_kwargs": {"trust_remote_code": False}},
            "code from the model's repository is not run",
        ),
        (
            "trust_remote_code: true\nmodel_init_kwargs: {use_kernels: true}",
            {"model_init_kwargs": {"use_kernels": True, "trust_remote_code": True}},
            "code from the model's repository will run here",
        ),
        ("model_code_revision: null", {}, "left out"),
        ("model_code_revision: abc", {"model_init_kwargs": {"code_revision": "abc"}}, "read as model_init_kwargs"),
        ("no_cuda: true", {"use_cpu": True}, "read as use_cpu: true"),
        ("hub_model_revision: main", {"hub_revision": "main"}, "read as hub_revision: main"),
        ("group_by_length: true", {}, "left out: pairs are ordered by the trainer's own sampler"),
        ("save_safetensors: true", {}, "left out: weights are always saved as safetensors"),
        ("overwrite_output_dir: true", {}, "left out: a run in a used output_dir starts over"),
        ("generate_during_eval: false", {}, "left out: answers are not sampled"),
        ("precompute_ref_log_probs: true", {}, "left out: SimPO has no reference model"),
        ("truncation_side: left", {}, "left out: truncation_mode chooses"),
    ],
)
def test_aged_keys(load, line, settings, notice):
    recipe = load(line)
    given = {key: value for key, value in recipe.settings.items() if key not in ("output_dir", "dataset_name")}
    given = {key: getattr(value, "value", value) for key, value in given.items() if key != "model_name_or_path"}
    assert given == settings
    [found] = recipe.notices
    assert notice.replace(" .", " (") in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("warmup_ratio: 100", "line 4: warmup_ratio: a share of the steps is below 1, found 100. Write warmup_steps"),
        ("warmup_ratio: lots", 'line 4: warmup_steps is "lots"; it must be a number'),
        ("warmup_ratio: 0.1\nwarmup_steps: 10", "warmup_ratio and warmup_steps are both given; keep warmup_steps"),
        ("save_safetensors: false", "always saved as safetensors. Leave it out"),
        ("generate_during_eval: true", "answers are not sampled during evaluation. Leave it out"),
        ("is_encoder_decoder: true", "only decoder models are trained. Choose a causal language model"),
        ("base_model_revision: v1", "Write the revision there"),
        ("torch_dtype: half", 'dtype is "half"; it must be one of auto, bfloat16, float16, float32'),
    ],
)
def test_aged_values_that_cannot_be_carried_over(load, line, message):
    with pytest.raises(SimPOError, match=message):
        load(line)


def test_a_later_layer_wins_under_either_name(load):
    assert load("warmup_ratio: 0.2", ["--warmup_steps", "7"]).training.warmup_steps == 7
    assert load("warmup_steps: 7", ["--warmup_ratio", "0.2"]).training.warmup_steps == 0.2


@pytest.mark.parametrize("words", [["--use_flash_attention_2", "false"], ["--no-use_flash_attention_2"]])
def test_what_an_aged_key_switched_on_another_layer_switches_off(load, words):
    text = "use_flash_attention_2: true\ntrust_remote_code: true\ntorch_dtype: bfloat16\n"
    words = [*words, "--no-trust-remote-code", "--torch_dtype", "null"]
    settings = load(text, words).settings
    assert "attn_implementation" not in settings and "dtype" not in settings
    assert settings["model_init_kwargs"] == {"trust_remote_code": False}
    # Off does not touch another choice.
    assert load("attn_implementation: eager", ["--no-use-flash-attention-2"]).settings["attn_implementation"] == "eager"


def test_keyword_arguments_of_layers_are_joined(load):
    recipe = load("model_init_kwargs: {use_kernels: true}", ["--trust_remote_code", "true"])
    assert recipe.settings["model_init_kwargs"] == {"use_kernels": True, "trust_remote_code": True}
    assert recipe.origins["model_init_kwargs"] == "recipe.yaml:4, command line (trust_remote_code)"
    # A mapping that is itself given replaces, as any value does.
    replaced = load("model_init_kwargs: {use_kernels: true}", ["--model_init_kwargs", "{a: 1}"])
    assert replaced.settings["model_init_kwargs"] == {"a": 1}


def test_the_handbooks_newer_mixture_is_explained(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: m\noutput_dir: o\ndataset_mixture: {datasets: [{id: a}]}\n")
    with pytest.raises(
        SimPOError, match="dataset_mixture: is the handbook's newer list.*Write them under datasets"
    ) as caught:
        load_recipe(path)
    assert "is not set" not in str(caught.value)


def test_handbook_keys_keep_their_meaning(load):
    recipe = load(
        "use_peft: true\nload_in_4bit: true\nlora_r: 128\nlora_alpha: 128\nlora_dropout: 0.05\n"
        "lora_target_modules: [q_proj, v_proj]\ntruncation_mode: keep_start\nchat_template: '{{ messages }}'\n"
        "auto_insert_empty_system_msg: true\ndataset_configs: null\nbnb_4bit_quant_type: nf4\nlearning_rate: 5e-6\n"
    )
    assert (recipe.model.use_peft, recipe.model.load_in_4bit, recipe.model.lora_r) == (True, True, 128)
    assert recipe.model.lora_target_modules == ["q_proj", "v_proj"]
    assert recipe.training.truncation_mode == "keep_start"
    assert recipe.training.auto_insert_empty_system_msg
    assert recipe.data.chat_template == "{{ messages }}"
    assert recipe.notices == []


def test_no_aged_key_is_one_of_ours_or_another_trainers():
    assert not _AGED.keys() & (KEYS.keys() | OTHER_TRAINERS.keys())
