"""Recipes: read YAML files into checked settings for training, model and data."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .load import Recipe, check_recipe, load_recipe

__all__ = ["Recipe", "check_recipe", "load_recipe"]

__getattr__ = exported(__name__, dict.fromkeys(__all__, "load"))
