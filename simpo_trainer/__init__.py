"""SimPO (Simple Preference Optimization, arXiv 2405.14734) training for language models."""

from typing import TYPE_CHECKING

from ._version import __version__
from .lazy import exported

if TYPE_CHECKING:
    from .errors import SimPOError
    from .train.config import SimPOConfig
    from .train.trainer import SimPOTrainer

__all__ = ["SimPOConfig", "SimPOError", "SimPOTrainer", "__version__"]

__getattr__ = exported(
    __name__, {"SimPOConfig": "train.config", "SimPOError": "errors", "SimPOTrainer": "train.trainer"}
)
