"""On-policy data: answers of the model itself, and the files of answers, scores and rounds."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .generation import generate

__all__ = ["generate"]

__getattr__ = exported(__name__, {"generate": "generation"})
