"""On-policy data: answers of the model itself, their scores, and the pairs that they make."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .annotation import annotate
    from .generation import generate

__all__ = ["annotate", "generate"]

__getattr__ = exported(__name__, {"annotate": "annotation", "generate": "generation"})
