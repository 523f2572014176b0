"""One object under one name holds all that scoring attaches to a model; no other module knows the name."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .attention import MaskPlan

# Also the mark of a forward that scores: whoever puts the model's own forward back takes the mark off with ours.
_NAME = "simpo_scoring"


@dataclass(frozen=True)
class Scoring:
    """Everything that a prepared model needs for scoring, apart from its forward.

    Args:
        mask_plan: makes the masks of rows that hold several answers; None for a model that cannot have such rows.
    """

    mask_plan: MaskPlan | None


def is_prepared(model: nn.Module) -> bool:
    """Returns whether the model's forward scores answers."""
    return hasattr(model.forward, _NAME)


def scoring_of(model: nn.Module) -> Scoring:
    """Returns the object that was attached to a prepared model."""
    return cast(Scoring, getattr(model, _NAME))


def attach_scoring(model: nn.Module, forward: Callable[..., Any], scoring: Scoring) -> None:
    """Give a model a forward that scores, and what it scores with."""
    setattr(forward, _NAME, True)
    model.forward = types.MethodType(forward, model)
    replace_scoring(model, scoring)


def replace_scoring(model: nn.Module, scoring: Scoring) -> None:
    """Let a prepared model score with something else from now on."""
    setattr(model, _NAME, scoring)
