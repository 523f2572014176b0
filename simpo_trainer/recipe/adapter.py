"""The recipe's keys for an adapter, as they were written: trl's `ModelConfig` reads a list of one as a text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl import get_peft_config

from ..errors import SimPOError
from ..model.settings import ModelSettings
from ..train.rate import FULL_RATE, adapter_rate
from .model_keys import ModelKeys

# A text that peft reads as a word of its own, not as a pattern.
_ALL_LINEAR = "all-linear"
# The name of a module, maybe with those around it; anything else in a text is a regular expression.
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


def is_of_adapter(key: str) -> bool:
    """Returns whether a key describes an adapter, and does nothing without one."""
    return key.startswith(("lora_", "use_rslora", "use_dora"))


def settle_adapter(model: ModelKeys, given: Mapping[str, Any], settings: ModelSettings) -> None:
    """Put what the recipe says of its adapter into trl's settings, and check that peft takes it.

    Args:
        model: trl's settings, changed in place.
        given: the values of the recipe.
        settings: its `disable_dropout` is read.

    Raises:
        SimPOError: the targets cannot be meant as they are written.
        ValueError: peft does not take the settings.
    """
    if not model.use_peft:
        return
    model.lora_target_modules = targets(given.get("lora_target_modules"))  # type: ignore[assignment]
    if settings.disable_dropout and "lora_dropout" not in given:
        model.lora_dropout = 0.0
    if model.lora_task_type != "CAUSAL_LM":
        raise SimPOError(
            f"lora_task_type is {model.lora_task_type}; it must be CAUSAL_LM, since a language model is trained. Leave "
            "it out."
        )
    get_peft_config(model)


def settle_rate(
    model: ModelKeys, usual: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the learning rate of a recipe that trains an adapter and names none, and a notice about it.

    Args:
        model: the settings of model and adapter.
        usual: defaults of the method.
        given: the values of the recipe.
    """
    saved = Path(str(model.model_name_or_path)) / "adapter_config.json"
    if given.get("learning_rate") is not None or not (model.use_peft or saved.is_file()):
        return {}, []
    rate, told = adapter_rate(usual.get("learning_rate", FULL_RATE))
    return {"learning_rate": rate}, [told]


def targets(given: list[str] | None) -> list[str] | str:
    """Returns the targets as peft reads them: names in a list, `all-linear` or a regular expression as a text.

    Args:
        given: the key's list; a text in a recipe comes as a list of one. None means every linear layer.

    Raises:
        SimPOError: texts that stand alone are among others, or names are written into one text.
    """
    if given is None:
        return _ALL_LINEAR
    if len(given) == 1 and given[0].lower() == _ALL_LINEAR:
        return _ALL_LINEAR
    if any(name.lower() == _ALL_LINEAR for name in given):
        raise SimPOError(
            f"lora_target_modules has all-linear among other names; it must stand alone. Set lora_target_modules: "
            f"{_ALL_LINEAR}, or list the names."
        )
    patterns = [name for name in given if not _NAME.fullmatch(name)]
    if not patterns:
        return given
    names = [name.strip() for name in re.split(r"[,\s]+", patterns[0].strip()) if name.strip()]
    if len(names) > 1 and all(_NAME.fullmatch(name) for name in names):
        raise SimPOError(
            f"lora_target_modules has the text {patterns[0]!r}, which is no name of a module. Set lora_target_modules: "
            f"[{', '.join(names)}]."
        )
    if len(given) > 1:
        raise SimPOError(
            f"lora_target_modules has {patterns[0]!r} in a list, where peft takes it for a name. A regular expression "
            "must stand alone, as a text; or list names."
        )
    try:
        re.compile(patterns[0])
    except re.error as error:
        raise SimPOError(
            f"lora_target_modules is {patterns[0]!r}, which is no name and no valid regular expression: {error}. List "
            "the names of the modules."
        ) from error
    return patterns[0]
