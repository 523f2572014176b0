"""A new adapter is the one that was asked for: its names are those of the model, its dropout is the run's."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from transformers import PreTrainedModel

from ..errors import SimPOError, did_you_mean
from ..log import get_logger
from .renamed import without_rename_warning
from .tied import check_tied
from .weights import WRAPPED

logger = get_logger(__name__)


def without_dropout(config: PeftConfig) -> PeftConfig:
    """Returns a copy of an adapter's configuration with every dropout at 0; a dropout above 0 is told.

    It must be 0 before the adapter is made: layers over fused experts take no dropout.
    """
    quiet = copy(config)
    for name, value in _dropouts(config):
        logger.warning(
            f"{name} of the adapter is {value}, but disable_dropout is true: the adapter trains with 0. Set "
            "disable_dropout: false to train with dropout."
        )
        setattr(quiet, name, 0.0)
    return quiet


def drop_dropout(model: Any) -> None:
    """Set dropout to 0 in the configurations of a model's adapters, so that what is saved says what was trained."""
    configs = getattr(model, "peft_config", None)
    for config in configs.values() if isinstance(configs, dict) else ():
        for name, _ in _dropouts(config):
            setattr(config, name, 0.0)


def _dropouts(config: PeftConfig) -> list[tuple[str, float]]:
    """The fields of an adapter's configuration that are rates of dropout above 0 (lora_dropout, rank_dropout, ...)."""
    return [
        (name, value)
        for name, value in vars(config).items()
        if name.endswith("dropout") and isinstance(value, float | int) and value > 0 and not isinstance(value, bool)
    ]


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Returns the model with a new adapter.

    Args:
        model: the base.
        config: the adapter's.

    Raises:
        SimPOError: the configuration does not fit the model.
    """
    try:
        with without_rename_warning(), _no_start_of_empty_weights(model, config):
            return cast(PeftModel, get_peft_model(model, config))
    except (ValueError, TypeError, re.error) as error:  # its text says what: target modules that are not there, for one
        targets = getattr(config, "target_modules", None)
        hint = ""
        if isinstance(targets, str) and "not found" in str(error) and targets.isidentifier():
            hint = f" A text is a regular expression for the whole name; name a part of it in a list: [{targets!r}]."
        raise SimPOError(f"peft_config does not fit the model: {refusal(error)}{hint}") from error


@contextmanager
def _no_start_of_empty_weights(model: PreTrainedModel, config: Any) -> Iterator[None]:
    """While entered, an adapter on empty weights starts without computing from them (PiSSA); its own are sent later."""
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not any(weight.is_meta for weight in model.parameters()):
        yield
        return
    config.init_lora_weights = True
    try:
        yield
    finally:
        config.init_lora_weights = start


def describe_adapter(model: Any) -> str:
    """Returns ", by LoRA of rank 16 on q_proj, v_proj" with what the model has; "" for a model without an adapter."""
    base = getattr(model, "module", model)
    if not isinstance(base, PeftModel):
        return ""
    config = base.peft_config[base.active_adapters[0]]
    kind, rank = getattr(config.peft_type, "value", config.peft_type), getattr(config, "r", None)
    adapted = {name.rsplit(".", 1)[-1] for name in getattr(base.base_model, "targeted_module_names", ())}
    return (
        f", by {kind}" + (f" of rank {rank}" if rank else "") + (f" on {', '.join(sorted(adapted))}" if adapted else "")
    )


def refusal(error: Exception) -> str:
    """Returns the text of an error of peft, with the remedy where it gives none."""
    text = str(error)
    if isinstance(error, re.error):
        return (
            f"target_modules is a text, which is a regular expression, and no valid one: {text}. Give names as a list."
        )
    if "lora_dropout != 0" in text:
        text += " Fused experts take no dropout. Set lora_dropout: 0, or disable_dropout: true."
    return text


def check_adapter(model: PeftModel, *, is_new: bool) -> None:
    """Refuse an adapter that would train something else than its configuration says, or could not be merged.

    Args:
        model: with its adapter.
        is_new: whether the adapter was made for this run. The names of a loaded one were checked by its weights.

    Raises:
        SimPOError: names that the model has not, another task than language modelling, DoRA over rows of zeros, a
            random start that loading repeats otherwise, or one weight that is embedding and head.
    """
    config: Any = model.active_peft_config
    _check_task(config)
    _check_start(config)
    if is_new:
        _check_names(model, config)
    check_tied(model)
    _check_magnitudes(model)


def _check_task(config: Any) -> None:
    if config.task_type not in (None, TaskType.CAUSAL_LM, TaskType.CAUSAL_LM.value):
        task = getattr(config.task_type, "value", config.task_type)
        raise SimPOError(
            f"The adapter's task_type is {task}; it must be CAUSAL_LM, since a language model is trained. Set it "
            "so (in a recipe, lora_task_type), or leave it out."
        )


def _check_start(config: Any) -> None:
    """Refuse an adapter that cannot be loaded as it was trained, and tell of one that the trainer does not finish."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith("pissa_niter"):
        raise SimPOError(
            f"init_lora_weights is {start}; its random decomposition of the base is another one each time the adapter "
            "is loaded, and the model another than was trained. Set init_lora_weights: 'pissa'."
        )
    if config.peft_type == PeftType.ADALORA:
        logger.warning(
            "AdaLoRA shrinks ranks only where its update_and_allocate is called after each optimiser step, which the "
            "trainer does not do: every rank stays init_r. Pass a callback that calls it, or take LoRA."
        )


def _check_names(model: PeftModel, config: Any) -> None:
    """Refuse names that nothing in the model has: peft leaves them out in silence as long as one other name fits."""
    base = model.get_base_model()
    modules = {re.sub(WRAPPED, "", name) for name, _ in base.named_modules()}
    parameters = {re.sub(WRAPPED, "", name) for name, _ in base.named_parameters(remove_duplicate=False)}
    for field, known in (("target_modules", modules), ("modules_to_save", modules), ("target_parameters", parameters)):
        given = getattr(config, field, None)
        if field == "modules_to_save" and isinstance(given, str):
            raise SimPOError(
                f"modules_to_save is the text {given!r}; it must be a list. Set modules_to_save: [{given}]."
            )
        if not isinstance(given, list | set | tuple):
            continue  # a text is a pattern, and peft says if it fits nothing
        # peft looks for modules to save by the end of a name alone.
        dot = "" if field == "modules_to_save" else "."
        if missing := sorted(name for name in given if not any(f".{each}".endswith(dot + name) for each in known)):
            raise SimPOError(_unknown(field, missing, known))


def _unknown(field: str, missing: list[str], known: Iterable[str]) -> str:
    """An error for names that are not the model's."""
    if "all-linear" in missing:
        return f"{field} has 'all-linear' among other names; it must stand alone: {field}: all-linear."
    # Without the numbers of layers, which would make every name a long one.
    last = {each.rsplit(".", 1)[-1] for each in known if each} - {""}
    guesses = "".join(did_you_mean(name, sorted(last), 1) for name in missing[:1])
    return (
        f"{field} of the adapter names {', '.join(missing)}, which this model does not have; nothing would be trained "
        f"for {'them' if len(missing) > 1 else 'it'}. Correct the name{'s' if len(missing) > 1 else ''}, or leave "
        f"{'them' if len(missing) > 1 else 'it'} out (in a recipe, the key is lora_{field}).{guesses}"
    )


def _check_magnitudes(model: PeftModel) -> None:
    """Refuse DoRA over rows of zeros, as heads have for tokens never trained: it divides by the norm of a row."""
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name and not parameter.is_meta and (parameter == 0).any():
            layer = name.split(".lora_magnitude_vector")[0].rsplit(".", 1)[-1]
            raise SimPOError(
                f"use_dora is true and the weight of {layer} has {int((parameter == 0).sum())} rows of zeros: DoRA "
                f"divides by the norm of each row, and the loss would be NaN. Leave {layer} out of target_modules, or "
                "set use_dora: false."
            )
