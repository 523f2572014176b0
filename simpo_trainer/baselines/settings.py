"""The key `method` of a recipe, the arguments of trl's trainers, and our settings that apply to them too."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from ..knobs import knob
from ..model.settings import ModelSettings
from ..record.methods import METHODS
from ..tokens.settings import RowSettings
from ..train.config import SimPOConfig


@dataclass
class MethodConfig:
    """The method that trains the model on the data (a key of a recipe)."""

    method: str = knob(
        "simpo",
        "Method of training: 'simpo'; or, with the same recipe, a baseline to compare with: 'dpo' by trl's DPOTrainer, "
        "'sft' (supervised fine-tuning on chosen answers, or on rows of `messages`) by trl's SFTTrainer.",
    )


class _WithoutToken:
    """Keeps the Hub's token out of the arguments' text and out of the pickle that a trainer writes into each folder."""

    __repr__ = TrainingArguments.__repr__

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hub_token": None}


@dataclass(repr=False)
class DPOArguments(_WithoutToken, DPOConfig):
    """Arguments of trl's `DPOTrainer`, with the beta of the SimPO paper's DPO runs as default."""

    beta: float = knob(
        0.01,
        "How strongly the model is kept near the reference model, > 0. DPO sums log-probabilities, so SimPO's values "
        "(2 to 10) do not fit; the SimPO paper's DPO runs use 0.01, others up to 0.5.",
    )
    ref_model_init_kwargs: dict[str, Any] | None = knob(
        None, "Keyword arguments of `from_pretrained` for the reference model, on top of the model's own."
    )


@dataclass(repr=False)
class SFTArguments(_WithoutToken, SFTConfig):
    """Arguments of trl's `SFTTrainer`."""


BaselineArguments = DPOArguments | SFTArguments
ARGUMENTS: dict[str, type[Any]] = {
    name: method.load("arguments") for name, method in METHODS.items() if not method.is_simpo
}

_COMMON = set(TrainingArguments.__dataclass_fields__)
# Settings that only SimPO's loss and layouts use.
_OF_SIMPO = {"margin_scale", "batch_layout"}
# The settings of rows, model and batch, which all methods use.
SHARED = [
    *(each.name for owner in (RowSettings, ModelSettings) for each in fields(owner) if each.name not in _OF_SIMPO),
    *(
        "dataset_num_proc",
        "global_batch_size",
        "rescue_dir",
        "allow_changes",
        "sample_prompts",
        "stop_on_collapse",
        "push_report",
    ),
]
# Fields of trl's arguments that a recipe has under another name, or that nothing uses here.
_NOT_OFFERED = {
    *("trust_remote_code", "pad_token", "chat_template_path"),
    *("eos_token", "dataset_text_field", "dataset_kwargs"),
}
# Fields of trl's arguments that are always recorded; others only if they differ from their defaults.
_ALWAYS_TOLD = ("beta", "loss_type")
# Fields whose value SimPOConfig decides, from the machine or the handling of signals.
_SETTLED = ("use_cpu", "disable_tqdm", "enable_jit_checkpoint")


def shared_keys(method: str) -> set[str]:
    """Returns the fields of `SimPOConfig` that have the same meaning under `method` as for SimPO."""
    if METHODS[method].is_simpo:
        return set(SimPOConfig.__dataclass_fields__)
    return _COMMON | set(SHARED)


def own_keys(method: str) -> set[str]:
    """Returns the fields of trl's arguments that a recipe gives under the same name."""
    if METHODS[method].is_simpo:
        return set()
    return set(ARGUMENTS[method].__dataclass_fields__) - _COMMON - set(SHARED) - _NOT_OFFERED


def method_settings(method: str, args: TrainingArguments, shared: SimPOConfig) -> dict[str, Any]:
    """Returns the settings of a run for its record, without those of `TrainingArguments` and unchanged ones of trl.

    Args:
        method: the method's name.
        args: the arguments of trl's trainer.
        shared: the settings of the data and the model.
    """
    ours = {name: getattr(shared, name) for name in SHARED if name != "model_init_kwargs"}
    theirs = {name: getattr(args, name) for name in sorted(own_keys(method))}
    usual = {each.name: each.default for each in fields(type(args))} | {"pad_to_multiple_of": None}
    return {name: value for name, value in theirs.items() if value != usual[name] or name in _ALWAYS_TOLD} | ours


def build_arguments(method: str, training: SimPOConfig, given: Mapping[str, Any]) -> BaselineArguments:
    """Returns the arguments of trl's trainer for the same training as `training`.

    Args:
        method: a method of trl.
        training: the recipe's settings in SimPO's form, without those of the loss.
        given: the values of the recipe.

    Raises:
        ValueError: trl finds values that do not fit together.
    """
    owner, training = ARGUMENTS[method], training.settled()
    names = {each.name for each in fields(owner) if each.init}
    arguments = {name: value for name, value in given.items() if name in names & (_COMMON | own_keys(method))}
    arguments |= {name: getattr(training, name) for name in _ours(owner)}
    arguments |= {name: getattr(training, name) for name in ("dataset_num_proc", "disable_dropout") if name in names}
    # Token rows are already cut to length; for rows of `messages`, the trainer sets it.
    arguments["max_length"] = None
    with warnings.catch_warnings():
        # The newer name is unknown to the oldest version of transformers that this package works with.
        warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
        built: BaselineArguments = owner(**arguments)
    built.mixed_precision = training.mixed_precision
    return built


def _ours(owner: type[Any]) -> set[str]:
    """Returns the fields of `TrainingArguments` to take from SimPOConfig, because it or trl changes the default."""
    ours, theirs = ({each.name: each for each in fields(config)} for config in (SimPOConfig, owner))
    common = {name for name in _COMMON if theirs[name].init}
    differing = {name for name in common if theirs[name].default != ours[name].default}
    return differing | (common & set(SimPOConfig.__annotations__)) | set(_SETTLED)
