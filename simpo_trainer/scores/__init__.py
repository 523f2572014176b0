"""Scores of answers, and the pairs or ranked rows that they make."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .annotation import annotate

__all__ = ["annotate"]

__getattr__ = exported(__name__, {"annotate": "annotation"})
