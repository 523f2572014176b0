"""The preference losses, their settings and their metrics."""

from typing import TYPE_CHECKING

from ..lazy import exported

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

__getattr__ = exported(__name__, dict.fromkeys(__all__, "losses"))
