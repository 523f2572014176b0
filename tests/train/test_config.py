"""Settings: each explained, each checked before anything is loaded, with a message that says what to change."""

import dataclasses
import inspect
import logging
import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import torch.utils.checkpoint
from accelerate.utils import ParallelismConfig
from transformers import TrainingArguments

from simpo_trainer import SimPOConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.knobs import knob, knob_problems
from simpo_trainer.loss.losses import LOSSES
from simpo_trainer.train.arguments import CHECKPOINTING_OPTIONS
from simpo_trainer.train.config import _accumulation, _micro_batch


@pytest.fixture
def config(tmp_path):
    """Makes a configuration of the given settings."""
    return lambda **settings: SimPOConfig(output_dir=str(tmp_path), **settings)


@pytest.fixture
def warnings_of(config, caplog):
    """The warnings that settings give."""

    def warnings_of(**settings) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "simpo_trainer"):
            config(**settings)
        return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("simpo_trainer"))

    return warnings_of


@pytest.mark.parametrize("field", dataclasses.fields(SimPOConfig), ids=lambda field: field.name)
def test_every_setting_has_help(field):
    assert len(field.metadata.get("help", "")) > 10


def test_options_of_checkpointing_are_those_of_torch():
    known = inspect.signature(torch.utils.checkpoint.checkpoint).parameters
    own = {name for name, one in known.items() if one.kind is one.KEYWORD_ONLY or name == "use_reentrant"}
    assert set(CHECKPOINTING_OPTIONS) == own | {"preserve_rng_state"}


def test_defaults_are_the_papers(config):
    args = config().settled()
    expected = {
        "beta": 2.0,
        "gamma_beta_ratio": 0.5,
        "loss_type": "sigmoid",
        "label_smoothing": 0.0,
        "average_log_prob": True,
        "sft_weight": 0.0,
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "num_train_epochs": 1.0,
        "max_grad_norm": 1.0,
        "disable_dropout": True,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.get_warmup_steps(200) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, r"beta is 0\.0; it must be above 0\. Set beta: 2\.0"),
        ({"beta": -1.0}, r"beta is -1\.0; it must be above 0"),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrnt": True}},
            "has 'use_reentrnt', which torch's checkpoint does not know; it knows .* Did you mean use_reentrant",
        ),
        ({"beta": float("nan")}, r"beta is nan"),
        ({"gamma_beta_ratio": -0.1}, r"gamma_beta_ratio is -0\.1; a target margin is a number, 0 or above\. Set"),
        ({"gamma_beta_ratio": float("nan")}, r"gamma_beta_ratio is nan"),
        ({"label_smoothing": 0.51}, r"label_smoothing is 0\.51; it must lie in \[0, 0\.5\].*Set label_smoothing"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1; it must lie in"),
        ({"loss_type": "simpo"}, r"loss_type is 'simpo', which is the name of a method.* Set loss_type: sigmoid"),
        ({"loss_type": "dpo"}, r"loss_type is 'dpo', which is the name of a method.* Set method: dpo"),
        ({"loss_type": "sft"}, r"loss_type is 'sft', which is the name of a method.* Set method: sft"),
        (
            {"loss_type": "apo_zero"},
            r"loss_type is 'apo_zero', which compares with a reference model.* Set method: dpo",
        ),
        ({"loss_type": "sigmod"}, r"loss_type is 'sigmod'; it must be one of sigmoid, .*Did you mean sigmoid"),
        ({"loss_type": []}, r"loss_type is an empty list; .*Set loss_type: sigmoid"),
        ({"loss_type": ["ipo", "ipo"]}, r"loss_type names a loss twice: ipo, ipo.*Add up"),
        ({"loss_type": ["ipo", "slic"], "loss_weights": [1.0]}, r"loss_weights has 1 numbers and loss_type 2 names"),
        ({"loss_type": ["ipo", "slic"], "loss_weights": [1.0, -1.0]}, r"loss_weights is .*; a weight is a number, 0"),
        ({"loss_type": ["ipo", "slic"], "loss_weights": [0.0, 0.0]}, r"loss_weights is .*leaves nothing to train"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"label_smoothing is 0\.5, and the robust loss divides"),
        ({"loss_type": "discopop", "discopop_tau": 1.0}, r"discopop_tau is 1\.0; it must lie between 0 and 1"),
        ({"loss_type": "slic", "slic_delta": -1.0}, r"slic_delta is -1\.0; a margin is a number"),
        ({"loss_type": "alphapo", "alpha": float("inf")}, r"alpha is inf; it must be a number"),
        ({"sft_weight": -0.5}, r"sft_weight is -0\.5; it must be 0 or above\. Set sft_weight: 0\.0"),
        ({"sft_reduction": "mean"}, r"sft_reduction is 'mean'; it must be 'sequence', 'token' or 'sum'"),
        ({"max_length": 1, "max_prompt_length": 1}, r"max_length is 1; a prompt and an answer need at least 2"),
        (
            {"max_length": 64, "max_prompt_length": 64},
            r"max_prompt_length is 64 and max_length 64;.*below max_length.*Lower max_prompt_length, leave it out "
            r"to have it follow, or raise max_length",
        ),
        ({"max_prompt_length": 0}, r"max_prompt_length is 0 .*at least 1"),
        ({"overlong": "cut"}, r"overlong is 'cut'; it must be 'truncate', 'official', 'drop' or 'error'"),
        ({"remove_unused_columns": True}, r"remove_unused_columns is true; .*Leave it out"),
        ({"logging_nan_inf_filter": True}, r"logging_nan_inf_filter is true; it would hide .*Leave it out"),
        ({"include_num_input_tokens_seen": "all"}, r"include_num_input_tokens_seen is 'all'; .* logs num_tokens_seen"),
        ({"label_smoothing_factor": 0.2}, r"label_smoothing_factor is 0\.2; .*Use label_smoothing, the share"),
        ({"auto_find_batch_size": True}, r"auto_find_batch_size is true; .*lower per_device_train_batch_size"),
        ({"neftune_noise_alpha": 5}, r"neftune_noise_alpha is 5; .*width of a row.*batch_layout.*Leave it out"),
        ({"use_liger_kernel": True}, r"use_liger_kernel is true; it replaces the model's forward"),
        ({"train_sampling_strategy": "group_by_length"}, r"train_sampling_strategy is 'group_by_length'.*Leave it out"),
        (
            {"parallelism_config": ParallelismConfig(cp_size=2)},
            r"context parallelism \(cp_size 2\) is set: .*Use fsdp2",
        ),
    ],
)
def test_problems(config, settings, message):
    with pytest.raises(SimPOError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.5},
        {"gamma_beta_ratio": 0.0},
        {"loss_type": "hinge"},
        {"sft_weight": 0.0, "sft_reduction": "token"},
        {"max_length": 2, "max_prompt_length": 1},
        {"overlong": "drop"},
        {"overlong": "error"},
    ],
)
def test_values_at_the_edge_are_taken(config, settings):
    args = config(**settings)
    assert {name: getattr(args, name) for name in settings} == settings


def test_all_problems_are_reported_at_once(config):
    with pytest.raises(SimPOError) as error:
        config(beta=-1.0, max_length=10, max_prompt_length=20, remove_unused_columns=True)
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == ["beta", "max_prompt_length", "remove_unused_columns"]


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect on the loss hinge"),
        ({"beta": 0.1}, "beta=0.1 is DPO-sized"),
        ({"loss_type": "simper", "beta": 2.0}, "beta=2.0 has no effect on the loss simper. Leave it out"),
        ({"loss_type": ["ipo", "slic"], "alpha": 0.3}, "alpha=0.3 has no effect on any of the losses ipo, slic"),
        ({"loss_type": "ipo", "margin_scale": 0.3}, "margin_scale=0.3 has no effect on the loss ipo, which knows no"),
        ({"loss_type": "orpo", "average_log_prob": False}, "average_log_prob=False has no effect on the loss orpo"),
        ({"loss_type": "cpo", "beta": 2.0}, "beta=2.0 is far from what the loss cpo is used with, 0.1"),
        (
            {"gamma_beta_ratio": 1.4, "beta": 2.0},
            "gamma_beta_ratio=1.4 asks for 1.4 nats per token between the answers; the paper uses 0.1 to 0.8. If the "
            "value is gamma, divide it by beta (0.7)",
        ),
    ],
)
def test_warnings(warnings_of, settings, warning):
    assert warning in warnings_of(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.1},
        {"loss_type": "hinge"},
        *({"loss_type": name} for name in LOSSES),
        {"loss_type": ["sigmoid", "simper"], "beta": 2.0, "loss_weights": [1.0, 0.5]},
        {"beta": 1.0},
        {"beta": 0.1, "average_log_prob": False},  # sums over tokens are larger
        {"gamma_beta_ratio": 1.0},
    ],
)
def test_no_warning_without_a_cause(warnings_of, settings):
    assert warnings_of(**settings) == ""


def test_unconnected_processes_are_refused(config, monkeypatch):
    """A launcher says two, this process is alone."""
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # which would look for the other one
    monkeypatch.setattr(SimPOConfig, "world_size", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SimPOError, match=r"started 2 processes \(WORLD_SIZE=2\), but this process sees 1.*Launch with"):
        config()
    monkeypatch.setenv("WORLD_SIZE", "1")
    config()
    monkeypatch.delenv("WORLD_SIZE")
    config()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what happens without an accelerator")
def test_without_an_accelerator_the_run_is_on_cpu_in_float32(config):
    assert config().use_cpu
    assert config().settled().bf16 is False
    assert config(bf16=True).settled().bf16


def test_the_progress_bar_is_off_where_nobody_sees_it(config, monkeypatch):
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda is_terminal=is_terminal: is_terminal)
        assert config().disable_tqdm != is_terminal
        assert config(disable_tqdm=True).disable_tqdm
        assert not config(disable_tqdm=False).disable_tqdm
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr("simpo_trainer.train.bars.is_in_notebook", lambda: True)
    assert not config().disable_tqdm


def test_model_init_kwargs_may_come_as_json_from_the_command_line(config):
    assert config(model_init_kwargs='{"attn_implementation": "eager"}').model_init_kwargs == {
        "attn_implementation": "eager"
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps is -1; it must be 1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; it must be 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it must be 1 or more"),
        ({"per_device_train_batch_size": -2, "global_batch_size": 8}, "per_device_train_batch_size is -2"),
        ({"global_batch_size": -8}, "global_batch_size is -8; it must be 1 or more"),
        ({"num_train_epochs": 0}, "max_steps is -1 and num_train_epochs 0; nothing would be trained"),
        ({"max_steps": 0}, "max_steps is 0 .*nothing would be trained"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be a number, 0 or above"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"warmup_steps": math.nan}, "warmup_steps is nan"),
        ({"max_grad_norm": math.inf}, "max_grad_norm is inf"),
    ],
)
def test_numbers_with_which_nothing_would_be_trained(config, settings, message):
    with pytest.raises(SimPOError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_num_proc": -1}, "dataset_num_proc is -1; it must be a number of processes"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps is 0; it must be 1 or more"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; it must be 0 or more"),
        (
            {"dataloader_persistent_workers": True},
            "dataloader_persistent_workers is true, .*Set dataloader_num_workers",
        ),
        ({"save_strategy": "best"}, "save_strategy is best, .*Set metric_for_best_model: eval_loss"),
    ],
)
def test_settings_that_would_end_a_run_after_its_data_was_read(config, settings, message):
    with pytest.raises(SimPOError, match=message):
        config(**settings)


def test_settings_that_look_like_those_but_work(config):
    config(dataset_num_proc=0, eval_accumulation_steps=1, dataloader_num_workers=1, dataloader_persistent_workers=True)
    evaluated = {"save_strategy": "best", "eval_strategy": "steps"}
    config(**evaluated, metric_for_best_model="eval_loss")
    config(**evaluated, load_best_model_at_end=True)
    config(**evaluated, lr_scheduler_type="reduce_lr_on_plateau")  # both take eval_loss by themselves


# ---- The global batch ----


def test_the_accumulation_follows_from_the_global_batch(config):
    assert config().settled().gradient_accumulation_steps == 1
    settings = {"global_batch_size": 128, "per_device_train_batch_size": 2}
    assert config(**settings).settled().gradient_accumulation_steps == 64
    assert config(**settings, gradient_accumulation_steps=3).settled().gradient_accumulation_steps == 3
    # The batch per device follows too, unless it or the accumulation is given.
    for wanted, micro in ((4, 4), (8, 8), (12, 6), (128, 8), (100, 5), (97, 1), (1, 1)):
        args = config(global_batch_size=wanted)
        assert (args.per_device_train_batch_size, args.train_batch_size) == (None, micro)
        settled = args.settled()
        assert settled.per_device_train_batch_size * settled.gradient_accumulation_steps == wanted
    assert config(global_batch_size=12, gradient_accumulation_steps=2).settled().per_device_train_batch_size == 8
    assert [_micro_batch(config(global_batch_size=24), count) for count in (1, 2, 3, 4, 5, 8, 24, 32)] == [
        *(8, 6, 8, 6, 4, 3, 1, 8)
    ]
    # On eight processes, which only a launcher can make.
    assert _accumulation(SimpleNamespace(**settings, gradient_accumulation_steps=None), 8) == (8, [])


@pytest.mark.parametrize(
    ("world_size", "settings", "message"),
    [
        (
            "8",
            {"global_batch_size": 100, "per_device_train_batch_size": 4},
            r"global_batch_size is 100, which is no multiple of 32 \(4 pairs per device x 8 processes\). Set "
            "global_batch_size: 96 or 128; or keep it and use 5 processes.",
        ),
        (
            "4",
            {"global_batch_size": 120, "per_device_train_batch_size": 4},
            "Set global_batch_size: 112 or 128; or keep it and set per_device_train_batch_size: 3 or 5.",
        ),
        (
            "1",
            {"global_batch_size": 3, "per_device_train_batch_size": 8},
            "global_batch_size: 8; or keep it and set .*: 3.",
        ),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(config, monkeypatch, world_size, settings, message):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(SimPOError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("launched", "settings", "precision"),
    [
        ("bf16", {}, "bf16"),
        ("bf16", {"bf16": False}, "no"),
        ("no", {"bf16": True}, "bf16"),
        ("bf16", {"fp16": False}, "bf16"),
        ("bf16", {"fp16": True}, "fp16"),
    ],
)
def test_the_recipe_decides_the_precision_and_the_launcher_where_it_is_silent(
    config, monkeypatch, launched, settings, precision
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    found = config(**settings).settled()
    assert (found.mixed_precision, found.bf16) == (precision, precision == "bf16")


# ---- What is left open ----

_BASE = {"loss_type": "sigmoid", "global_batch_size": 16, "per_device_train_batch_size": 2, "eval_strategy": "steps"}


@pytest.mark.parametrize(
    "change",
    [
        *({"loss_type": name} for name in LOSSES),
        {"loss_type": ["ipo", "slic"]},
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": None, "global_batch_size": 12},
        {"global_batch_size": 32},
        {"logging_steps": 3},
        {"eval_strategy": "no"},
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 10},
        {"metric_for_best_model": "rewards/accuracies"},
        {"fp16": True},
        {"gradient_checkpointing": True},
        {"torch_compile": True},
        {"beta": 3.0, "learning_rate": 1e-6, "max_length": 512, "max_prompt_length": 256},
    ],
    ids=lambda change: "-".join(f"{key}={value}" for key, value in change.items()),
)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_replaced_setting_gives_what_a_new_configuration_would(config, monkeypatch, change, bf16):
    """Nothing that was derived for the old settings is kept, whether the first configuration was used or not."""
    if bf16:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    old = config(**_BASE)
    old.settled()
    replaced, fresh = dataclasses.replace(old, **change), config(**{**_BASE, **change})
    assert replaced.to_dict() == fresh.to_dict()
    assert replaced.settled().to_dict() == fresh.settled().to_dict()
    assert replaced.objective == fresh.objective


@pytest.mark.parametrize(("longest", "prompt"), [(2048, 1800), (512, 450), (1024, 900), (8192, 7200), (3, 2), (2, 1)])
def test_the_limit_of_prompts_follows_from_max_length(config, caplog, longest, prompt):
    """So that max_length alone can be changed; an explicit limit stays."""
    caplog.set_level(logging.INFO, "simpo_trainer")
    args = config(max_length=longest)
    assert (args.max_prompt_length, args.settled().max_prompt_length) == (None, prompt)
    said = f"max_prompt_length is {prompt}: unset, it follows from max_length {longest}." in caplog.text
    assert said == (longest != 2048)
    assert dataclasses.replace(args, max_length=4096).settled().max_prompt_length == 3600
    assert config(max_length=9000, max_prompt_length=prompt).settled().max_prompt_length == prompt


def test_a_configuration_says_what_was_given_and_settled_what_is_used(config):
    args = config(**_BASE)
    open_fields = ["beta", "sft_weight", "gradient_accumulation_steps", "bf16", "eval_steps"]
    assert [getattr(args, name) for name in open_fields] == [None] * 5
    used = args.settled()
    assert [getattr(used, name) for name in open_fields] == [2.0, 0.0, 8, False, 10]
    assert [getattr(args, name) for name in open_fields] == [None] * 5
    assert used.settled().to_dict() == used.to_dict()
    args.gradient_accumulation_steps = 3  # by hand, as with any TrainingArguments
    assert args.settled().gradient_accumulation_steps == 3


def test_the_token_of_the_hub_is_not_in_the_text_of_a_configuration(config):
    args = config(hub_token="hf_secret")
    assert "hf_secret" not in repr(args) + str(args) + repr(args.settled())


def test_choices_are_read_off_the_annotation():
    """Of every setting with a fixed list, in one place; `knob_problems` knows no names."""

    @dataclasses.dataclass
    class Settings:
        colour: Literal["red", "green", "blue"] = knob("red", "The colour.")
        size: int | None = knob(None, "The size.", lambda size: size > 0, "it must be above 0.")

    assert knob_problems(Settings, Settings()) == []
    assert knob_problems(Settings, Settings("pink", 0)) == [
        "colour is 'pink'; it must be 'red', 'green' or 'blue'.",
        "size is 0; it must be above 0.",
    ]
