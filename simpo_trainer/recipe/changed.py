"""The settings of a recipe that are not those of a run from a recipe with nothing but what is required."""

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

from .adapter import is_of_adapter
from .keys import keys_of
from .load import Recipe, recipe_of

# Values for the keys that every recipe gives.
REQUIRED = {"model_name_or_path": "model", "output_dir": "output"}


def default_settings(method: str) -> dict[str, Any]:
    """Returns the settings of a run whose recipe gives only what is required, and those of an adapter beside them."""
    adapted, plain = (recipe_of(REQUIRED | {"use_peft": used}, method).resolved() for used in (True, False))
    return {name: value for name, value in (adapted | plain).items() if name not in REQUIRED}


def changed(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings that differ from their defaults, given or following from others.

    They are a recipe with the same settings: what follows otherwise without its value is kept as well.
    """
    resolved, defaults, keys = recipe.resolved(), default_settings(recipe.method), keys_of(recipe.method)
    kept = {name for name, value in resolved.items() if value != defaults.get(name, _plain(keys[name].default))}
    if any(is_of_adapter(name) for name in kept):
        kept |= {"use_peft"} & recipe.settings.keys()  # without it, they are refused
    again = _resolved_quietly({name: recipe.settings.get(name, resolved[name]) for name in kept}, recipe.method)
    kept |= {name for name, value in resolved.items() if value != again.get(name)}
    return {name: value for name, value in resolved.items() if name in kept}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _resolved_quietly(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Returns all settings of a recipe of these values; its warnings were given when they were first loaded."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return recipe_of(values, method).resolved()
    finally:
        logging.disable(disabled)
