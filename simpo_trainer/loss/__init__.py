"""The preference losses, the settings that they read, and their metrics."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .losses import (
        alphapo_loss,
        cpo_loss,
        discopop_loss,
        hinge_loss,
        ipo_loss,
        orpo_loss,
        robust_loss,
        rrhf_loss,
        simper_loss,
        simpo_loss,
        slic_loss,
        squared_loss,
    )

__all__ = [
    "alphapo_loss",
    "cpo_loss",
    "discopop_loss",
    "hinge_loss",
    "ipo_loss",
    "orpo_loss",
    "robust_loss",
    "rrhf_loss",
    "simper_loss",
    "simpo_loss",
    "slic_loss",
    "squared_loss",
]


def __getattr__(name: str):
    # Imported on first use: the names of the losses are known without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import losses

    return getattr(losses, name)
