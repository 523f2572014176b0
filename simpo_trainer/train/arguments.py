"""Arguments given in Python: names that do not exist and values of a wrong type, told as in a recipe."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, cast, get_origin, get_type_hints

from ..errors import SimPOError, did_you_mean
from ..value_types import convert, narrow, needed
from .other_trainers import OTHER_TRAINERS

# Arguments of other trainers' constructors.
_OF_OTHER_TRAINERS = {
    "ref_model": "SimPO has no reference model. Leave it out",
    "tokenizer": "it is called processing_class here",
    "quantization_config": 'write it into the settings: SimPOConfig(model_init_kwargs={"quantization_config": ...})',
    "data": "it is called train_dataset here",
}
# Values of these types are checked; a number of numpy or torch is left to what uses it.
_CHECKED = (str, bytes, bool, int, float, list, tuple, dict, set)


def refuse_unknown_settings(owner: type, given: Mapping[str, Any]) -> None:
    """Refuse names that are no field of a class of settings.

    Args:
        owner: the dataclass.
        given: the keyword arguments of its constructor.

    Raises:
        SimPOError: with every unknown name, and the name that is meant where it can be told.
    """
    known = {each.name for each in fields(owner) if each.init}
    problems = [f"{name} {_explained(name, given, known)}" for name in given if name not in known]
    if problems:
        raise SimPOError("\n".join(problems))


def _explained(name: str, given: Mapping[str, Any], known: Iterable[str]) -> str:
    if name in OTHER_TRAINERS and (told := OTHER_TRAINERS[name](given[name], given)):
        return f"{told}."
    return f"is no setting of SimPOConfig.{did_you_mean(name, sorted(known))}"


def settle_types(settings: Any) -> list[str]:
    """Convert texts that stand for numbers, as 5e-7 in a YAML file is one, and return a sentence for each wrong type.

    Args:
        settings: an instance of a dataclass, changed in place.
    """
    problems = []
    for name, (hint, default) in _types(cast(Hashable, type(settings))).items():
        value = getattr(settings, name)
        if value is None or value is default or value == default or type(value) not in _CHECKED or value != value:
            continue
        if get_origin(hint) is Literal and isinstance(value, str):
            continue  # checked with the ranges of numbers
        try:
            converted = convert(value, hint)
        except ValueError:
            problems.append(f"{name} is {value!r}; it must be {needed(hint, value)}.")
            continue
        if type(converted) is int or (isinstance(value, str) and type(converted) in (bool, float)):
            setattr(settings, name, converted)
    return problems


@cache
def _types(owner: type) -> dict[str, tuple[Any, Any]]:
    """Returns the type and the default of each field that takes numbers, names or truth values.

    Those that transformers reads in several ways (`fsdp`, `debug`, ...) are left to it.
    """
    hints = get_type_hints(owner)
    found = {}
    for each in fields(owner):
        hint = narrow(hints[each.name], each)
        if each.init and each.name not in _READ_BY_TRANSFORMERS:
            found[each.name] = (hint, each.default)
    return found


_READ_BY_TRANSFORMERS = {
    *("fsdp", "fsdp_config", "deepspeed", "debug", "accelerator_config", "parallelism_config", "lr_scheduler_kwargs"),
    *(
        "resume_from_checkpoint",
        "optim_args",
        "report_to",
        "include_num_input_tokens_seen",
        "gradient_checkpointing_kwargs",
    ),
    *("activation_checkpointing_kwargs", "liger_kernel_config", "dataloader_multiprocessing_context"),
}


_CHECKPOINTING = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
# Of torch.utils.checkpoint; a test compares them with its signature.
CHECKPOINTING_OPTIONS = (
    *("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"),
)


def checkpointing_problems(config: Any) -> list[str]:
    """Returns a sentence for each option on which torch's checkpoint would fail in the first step."""
    known = ", ".join(CHECKPOINTING_OPTIONS)
    found = [(name, getattr(config, name, None)) for name in _CHECKPOINTING]
    return [
        f"{name} has {option!r}, which torch's checkpoint does not know; it knows {known}."
        f"{did_you_mean(str(option), CHECKPOINTING_OPTIONS)} Correct it, or leave it out."
        for name, given in found
        for option in (given if isinstance(given, Mapping) else ())
        if option not in CHECKPOINTING_OPTIONS
    ]


def refuse_unknown_arguments(trainer: str, given: Mapping[str, Any], settings: type, known: Iterable[str]) -> None:
    """Refuse arguments that a trainer's constructor does not have.

    Args:
        trainer: the name of its class.
        given: the unknown arguments.
        settings: the class of its settings.
        known: the arguments that it has.

    Raises:
        SimPOError: with every unknown name, and where its value belongs if that can be told.
    """
    of_settings = {each.name for each in fields(settings)}
    problems = []
    for name in given:
        if name in _OF_OTHER_TRAINERS:
            why = f": {_OF_OTHER_TRAINERS[name]}."
        elif name in of_settings:
            why = f": it is a setting. Write args={settings.__name__}({name}=...)."
        else:
            why = "." + did_you_mean(name, known)
        problems.append(f"{trainer} has no argument {name}{why}")
    if problems:
        raise SimPOError("\n".join(problems))
