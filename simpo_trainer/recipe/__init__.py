"""Recipes: YAML files to checked settings for training, model and data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .load import Recipe, check_recipe, load_recipe

__all__ = ["Recipe", "check_recipe", "load_recipe"]


def __getattr__(name: str):
    # Imported on first use: the command line lists recipes without waiting for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import load

    return getattr(load, name)
