"""Reading rows: sources, formats, mixtures, and what a row must hold."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .settings import DataConfig

__all__ = ["DataConfig"]

__getattr__ = exported(__name__, dict.fromkeys(__all__, "settings"))
