"""One run from start to end, in one process or many."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .one_run import Interrupted, run

__all__ = ["Interrupted", "run"]

__getattr__ = exported(__name__, dict.fromkeys(__all__, "one_run"))
