"""SimPO (Simple Preference Optimization, arXiv 2405.14734) training for language models."""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .errors import SimPOError
    from .train.config import SimPOConfig
    from .train.trainer import SimPOTrainer

__all__ = ["SimPOConfig", "SimPOError", "SimPOTrainer", "__version__"]

_HOMES = {"SimPOConfig": "train.config", "SimPOError": "errors", "SimPOTrainer": "train.trainer"}


def __getattr__(name: str):
    # Imported on first use, so that `simpo --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
