"""Reading rows: sources, formats, mixtures, and what a row must hold."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import DataConfig

__all__ = ["DataConfig"]


def __getattr__(name: str):
    # Imported on first use: a recipe is read without the libraries that read data.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import settings

    return getattr(settings, name)
