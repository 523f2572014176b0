"""A recipe as the record of a run tells it: its settings, where each comes from, and what each would be otherwise."""

import os
from enum import Enum
from typing import Any

from ..data.load import describe_sources
from ..loss.objective import settled_loss
from ..loss.settings import LossSettings
from ..record.facts import RecipeFacts
from ..record.methods import METHODS
from ..train.rate import FULL_RATE, adapter_rate
from .keys import keys_of
from .load import Recipe


def recipe_facts(recipe: Recipe) -> RecipeFacts:
    """Returns the facts about a recipe for the record of a run."""
    origins = {key: os.path.basename(origin) for key, origin in recipe.origins.items()}
    sources = describe_sources(recipe.data)
    return RecipeFacts(recipe.path.name, recipe.settings, origins, sources, _defaults(recipe))


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """Returns for each setting of a recipe the value that this run had without it; None where the data decide."""
    keys, decided = keys_of(recipe.method), dict[str, Any]()
    if METHODS[recipe.method].is_simpo:
        decided = settled_loss(LossSettings(loss_type=recipe.training.loss_type))
        decided |= {"loss_type": keys["loss_type"].default, "learning_rate": FULL_RATE}
    if recipe.model.use_peft:
        full = METHODS[recipe.method].usual.get("learning_rate", FULL_RATE)
        decided["learning_rate"] = adapter_rate(full)[0]
    found = {name: decided.get(name, keys[name].default) for name in recipe.settings if name in keys}
    return {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
