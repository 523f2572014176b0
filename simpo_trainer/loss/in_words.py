"""The loss of a run in sentences: its formula and paper, and what the health monitor can judge by it."""

from .objective import Objective
from .settings import LossSettings


def loss_in_words(settings: LossSettings, *, margin_scale: float) -> str:
    """Returns the loss as a formula with its sources, and the notation, in Markdown.

    Args:
        settings: the settings of the loss.
        margin_scale: the increase of the target margin for each point of score between ranked answers.
    """
    objective = Objective.of(settings)
    terms = [
        f"`{part.loss.formula}` ({part.name}, {_paper(part.loss.source)})"
        if len(objective.parts) == 1
        else f"{part.weight:g} times `{part.loss.formula}` ({part.name}, {_paper(part.loss.source)})"
        for part in objective.parts
    ]
    line = f"Loss of a pair: {' plus '.join(terms)}"
    if objective.parts[0].loss.compares == "either" and not objective.compares_averages:
        line += ", on log-probabilities of whole answers"
    if settings.label_smoothing and any(part.name in ("sigmoid", "cpo") for part in objective.parts):
        line += ", smoothed by `label_smoothing`"
    if margin_scale:
        line += (
            "; with ranked answers, the target margin grows by `margin_scale` times the difference of scores or ranks"
        )
    if objective.sft_weight:
        line += "; added to it, `sft_weight` times the negative log-likelihood of the chosen answer"
    notation = "`delta` is the log-probability of the chosen answer less that of the rejected one"
    if objective.compares_averages:
        notation += ", each per token (`a`)"
    if any("z" in part.loss.formula for part in objective.parts):
        notation += ", and `z = delta - gamma_beta_ratio`"
    return f"{line}. {notation}."


def watched_in_words(objective: Objective) -> str:
    """Returns which rules of the health monitor apply: they need averages per token, or a target margin of them."""
    if not objective.compares_averages:
        return "rules on log-probabilities of held-out pairs alone, none on a target margin"
    if objective.target_margin is None:
        return "rules on log-probabilities, none on a target margin"
    return "rules on log-probabilities and on the target margin"


def _paper(source: str) -> str:
    is_number = source.replace(".", "").isdigit()
    return f"[arXiv {source}](https://arxiv.org/abs/{source})" if is_number else source
