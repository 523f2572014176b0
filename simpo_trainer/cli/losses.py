"""`simpo losses`: the built-in losses as a table, and their curves as a picture."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SimPOError

# Log-probability per token half-way between two answers; what is drawn moves them apart.
_MIDDLE = -2.0
# Tokens of the answers for losses that compare whole ones.
_TOKENS = 100


def losses(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[LOSS]...", help="Losses to show; all by default.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw loss and gradient over the margin between two answers, as PNG, PDF or SVG."
        ),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="For the picture, instead of each loss's own.")] = None,
    gamma_beta_ratio: Annotated[
        float | None, typer.Option("--gamma-beta-ratio", "--gamma_beta_ratio", help="Likewise.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option("--label-smoothing", "--label_smoothing", help="Likewise.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Likewise.")] = None,
) -> None:
    """Show the losses that `loss_type` knows: formula, settings with their own defaults, paper."""
    from ..loss.objective import check_loss_names

    chosen = check_loss_names(names or [])
    typer.echo(loss_table(chosen))
    if plot is not None:
        given = {"beta": beta, "gamma_beta_ratio": gamma_beta_ratio, "label_smoothing": label_smoothing, "alpha": alpha}
        plot_losses(chosen, plot, {name: value for name, value in given.items() if value is not None})
        typer.echo(f"\n{plot} shows them.")


def loss_table(names: list[str]) -> str:
    """The losses of these names as text."""
    from ..loss.losses import DEFAULTS, LOSSES

    lines = []
    for name in names:
        loss = LOSSES[name]
        values = DEFAULTS | loss.defaults
        settings = [f"{key}={'none' if values[key] is None else format(values[key], 'g')}" for key in loss.uses]
        if loss.sft_weight:
            settings.append(f"sft_weight={loss.sft_weight:g}")
        paper = f"arXiv {loss.source}" if loss.source.replace(".", "").isdigit() else loss.source
        first = (inspect.getdoc(loss.function) or "").splitlines()[0].partition(":")[0].rstrip(".")
        compares = {"average": "per token", "sum": "of whole answers"}.get(
            loss.compares, "per token, or of whole answers with average_log_prob: false"
        )
        lines += [f"{name}", f"    {first} ({paper})", f"    {loss.formula}"]
        lines += [f"    log-probabilities {compares}; settings: {', '.join(settings) or 'none'}", ""]
    lines += [
        "delta: log-probability of the chosen answer less that of the rejected one; z = delta - gamma_beta_ratio; a: per",
        "token; eps: label_smoothing. Settings show what holds where a recipe says nothing. sft_weight adds the negative",
        "log-likelihood of chosen answers. A weighted mix: loss_type: [sigmoid, ipo], loss_weights: [0.7, 0.3].",
    ]
    return "\n".join(lines)


def plot_losses(names: list[str], path: Path, settings: dict[str, float]) -> None:
    """Draw the losses of pairs, and their gradients, over the margin between the answers.

    Args:
        names: which losses.
        path: the file to write; its ending says the format.
        settings: values instead of the losses' own.

    Raises:
        SimPOError: the folder or the format does not exist.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from ..loss.losses import LOSSES

    with rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, name in enumerate(names):
            margins, values, slopes = curve(name, settings)
            label = f"{name}, answers of {_TOKENS} tokens" if LOSSES[name].compares == "sum" else name
            style: dict[str, Any] = {
                "color": _COLOURS[number % len(_COLOURS)],
                "linestyle": _LINES[number // len(_COLOURS)],
            }
            left.plot(margins, values, label=label, **style)
            right.plot(margins, slopes, label=label, **style)
        for axis, title, unit in ((left, "Loss of a pair", "loss"), (right, "Its slope", "d loss / d margin")):
            axis.set(title=title, ylabel=unit, xlabel="margin (chosen - rejected), nats per token")
            axis.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
        # What is steeper than most would flatten all others.
        left.set_ylim(*_limits(left, -1.2, 6.0))
        right.set_ylim(*_limits(right, -6.0, 2.5))
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise SimPOError(f"The picture cannot be written to {path}: {error}. Give --plot another file.") from error


# Colours that readers with a colour vision deficiency can tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--")


def _limits(axis: Any, lowest: float, highest: float) -> tuple[float, float]:
    low, high = axis.get_ylim()
    return max(low, lowest), min(high, highest)


def curve(name: str, settings: dict[str, float]) -> tuple[list[float], list[float], list[float]]:
    """Margins in nats per token, the loss of a pair with each, and the slope of the loss there.

    The two answers lie evenly about -2 nats per token.
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
