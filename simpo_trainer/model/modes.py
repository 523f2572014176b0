"""Training and evaluation mode of a model that may be wrapped."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def in_training(model: nn.Module) -> bool:
    """Returns whether a model, wrapped or not, is in training mode.

    The innermost module is asked: `DeepSpeedEngine.train()` and `.eval()` switch that one and leave the engine's own
    flag.
    """
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model.training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model, wrapped or not, in evaluation mode while entered."""
    was_training = in_training(model)
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
