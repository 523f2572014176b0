"""Pictures of the losses: value and slope over the margin of a pair."""

from pathlib import Path
from typing import Any

from ..errors import SimPOError
from .style import GUIDE, finish_panel, line_style, picture

# Log-probability per token half-way between the two answers of a pair, for all margins.
_MIDDLE = -2.0
# Length of the answers for losses that compare whole answers, tokens.
_TOKENS = 100


def plot_losses(names: list[str], path: Path, settings: dict[str, float]) -> None:
    """Draw the losses of pairs, and their gradients, over the margin between the answers.

    Args:
        names: the losses to draw.
        path: the file to write; its ending gives the format.
        settings: values to use instead of the losses' defaults.

    Raises:
        SimPOError: the folder or the format does not exist.
    """
    from ..loss.losses import LOSSES

    # Wider than other panels: up to a dozen lines cross each other.
    with picture(1, 2, panel=(5.55, 4.6)) as (figure, [[left, right]]):
        for number, name in enumerate(names):
            margins, values, slopes = curve(name, settings)
            left.plot(margins, values, **line_style(number))
            right.plot(margins, slopes, **line_style(number))
        labels = [f"{name}, answers of {_TOKENS} tokens" if LOSSES[name].compares == "sum" else name for name in names]
        figure.legend(left.lines, labels, loc="outside right center")
        for axis, title, unit in ((left, "Loss of a pair", "loss"), (right, "Its slope", "d loss / d margin")):
            axis.set(title=title, ylabel=unit, xlabel="margin (chosen - rejected), nats per token")
            axis.axvline(0, **GUIDE)
            finish_panel(axis)
        # Without limits, one steep loss would flatten all others.
        left.set_ylim(*_limits(left, -1.2, 6.0))
        right.set_ylim(*_limits(right, -6.0, 2.5))
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise SimPOError(f"The picture cannot be written to {path}: {error}. Give --plot another file.") from error


def _limits(axis: Any, lowest: float, highest: float) -> tuple[float, float]:
    low, high = axis.get_ylim()
    return max(low, lowest), min(high, highest)


def curve(name: str, settings: dict[str, float]) -> tuple[list[float], list[float], list[float]]:
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
