"""Pictures of the losses: value and slope over the margin of a pair."""

from pathlib import Path
from typing import Any

from ..errors import SimPOError
from .style import BLUE, GREY, GUIDE, finish_panel, picture

# Log-probability per token half-way between the two answers of a pair, for all margins.
_MIDDLE = -2.0
# The loss that the others are compared with, SimPO's.
_REFERENCE = "sigmoid"
_COLUMNS = 4
_LIMITS = (-2.5, 5.0)
# Length of the answers for losses that compare whole answers, tokens.
_TOKENS = 100


def plot_losses(names: list[str], path: Path, settings: dict[str, float]) -> None:
    """Draw the loss of a pair and its slope over the margin between the answers, in a panel for each loss.

    The default loss stands in grey in the panels of the others.

    Args:
        names: the losses to draw.
        path: the file to write; its ending gives the format.
        settings: values to use instead of the losses' defaults.

    Raises:
        SimPOError: the folder or the format does not exist.
    """
    from ..loss.losses import LOSSES

    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    reference = curve(_REFERENCE, settings)
    with picture(rows, columns, panel=(3.2, 2.8), below=0.4) as (figure, grid):
        axes = grid.flatten()
        for axis, name in zip(axes, names, strict=False):
            if name != _REFERENCE:
                _draw(axis, reference, color=GREY, linewidth=1.2)
            _draw(axis, curve(name, settings), color=BLUE)
            axis.set_title(f"{name}, {_TOKENS} tokens" if LOSSES[name].compares == "sum" else name)
            axis.axvline(0, **GUIDE)
            finish_panel(axis)
            # The same limits for all, so that panels compare; a steep loss leaves its panel.
            axis.set_ylim(*_LIMITS)
        for axis in axes[max(0, len(names) - columns) : len(names)]:  # the lowest of each column
            axis.set_xlabel("margin (chosen - rejected), nats per token")
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        shown = [axes[0].lines[-3], axes[0].lines[-2]]
        labels = ["loss of a pair", "its slope, d loss / d margin"]
        if names != [_REFERENCE]:
            other = next(axis for axis, name in zip(axes, names, strict=False) if name != _REFERENCE)
            shown.append(other.lines[0])
            labels.append(f"{_REFERENCE}, the default, for comparison")
        figure.legend(shown, labels, loc="outside lower center", ncols=len(shown) if columns > 1 else 1)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise SimPOError(f"The picture cannot be written to {path}: {error}. Give --plot another file.") from error


Curve = tuple[list[float], list[float], list[float]]


def _draw(axis: Any, found: Curve, **style: Any) -> None:
    margins, values, slopes = found
    axis.plot(margins, values, **style)
    axis.plot(margins, slopes, linestyle="--", **style)


def curve(name: str, settings: dict[str, float]) -> Curve:
    """Returns margins in nats per token, the loss of a pair at each margin, and the slope of the loss there.

    The mean of the two answers' log-probabilities is -2 nats per token.
    """
    import torch

    from ..loss.losses import DEFAULTS, LOSSES

    loss = LOSSES[name]
    values = DEFAULTS | loss.defaults | settings
    margins = torch.linspace(-3.6, 3.6, 361, dtype=torch.float64).requires_grad_()
    scale = _TOKENS if loss.compares == "sum" else 1
    sides = [scale * (_MIDDLE + sign * margins / 2) for sign in (1, -1)]
    found = loss.function(*sides, **{key: values[key] for key in loss.uses})
    (slopes,) = torch.autograd.grad(found.sum(), margins)
    return margins.tolist(), found.tolist(), slopes.tolist()
