"""Rounds of answers, scores and training, each from the last model."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .iteration import iterate

__all__ = ["iterate"]

__getattr__ = exported(__name__, {"iterate": "iteration"})
