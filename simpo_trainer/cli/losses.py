"""`simpo losses`: the built-in losses as a table, and their curves as a picture."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from ..results.loss_curves import plot_losses


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
    beta: Annotated[float | None, typer.Option(help="For the picture, instead of each loss's default.")] = None,
    gamma_beta_ratio: Annotated[float | None, typer.Option(help="For the picture, too.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="For the picture, too.")] = None,
    alpha: Annotated[float | None, typer.Option(help="For the picture, too.")] = None,
) -> None:
    """Show the losses for `loss_type`: formula, settings with their defaults, paper, rules of the health monitor."""
    from ..loss.settings import check_loss_names

    chosen = check_loss_names(names or [])
    typer.echo(loss_table(chosen))
    if plot is not None:
        given = {"beta": beta, "gamma_beta_ratio": gamma_beta_ratio, "label_smoothing": label_smoothing, "alpha": alpha}
        plot_losses(chosen, plot, {name: value for name, value in given.items() if value is not None})
        typer.echo(f"\nWrote their curves to {plot}.")


def loss_table(names: list[str]) -> str:
    """Returns the losses of these names as text."""
    from ..loss.in_words import watched_in_words
    from ..loss.losses import DEFAULTS, LOSSES
    from ..loss.objective import Objective
    from ..loss.settings import LossSettings

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
        lines += [f"    log-probabilities {compares}; settings: {', '.join(settings) or 'none'}"]
        lines += [f"    health: {watched_in_words(Objective.of(LossSettings(loss_type=name)))}", ""]
    lines += [
        "delta: log-probability of the chosen answer less that of the rejected one; z = delta - gamma_beta_ratio; a: "
        "per",
        "token; eps: label_smoothing. Settings show what holds where a recipe says nothing. sft_weight adds the "
        "negative",
        "log-likelihood of chosen answers. A weighted mix: loss_type: [sigmoid, ipo], loss_weights: [0.7, 0.3].",
    ]
    return "\n".join(lines)
