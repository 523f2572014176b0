"""The loss that a run minimises: one built-in loss or a weighted mix, with the settings of each."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .losses import DEFAULTS, LOSSES, Loss
from .settings import LossSettings

if TYPE_CHECKING:
    from ..model.scoring import AnswerScores


@dataclass(frozen=True)
class Part:
    """A loss with its weight in the sum and the values of its settings."""

    name: str
    loss: Loss
    weight: float
    settings: dict[str, float | None]


@dataclass(frozen=True)
class Objective:
    """The preference loss of a pair, a weighted sum of parts, and the weight of the likelihood term added to it.

    Args:
        parts: the losses.
        sft_weight: weight of the likelihood term, added once.
        by_average: whether losses that can use either compare log-probabilities per token, not sums.
    """

    parts: tuple[Part, ...]
    sft_weight: float
    by_average: bool

    @classmethod
    def of(cls, settings: LossSettings) -> "Objective":
        """Returns the objective for settings without problems; unset settings take the defaults of each loss."""
        weights = settings.loss_weights or [1.0] * len(settings.loss_names)
        parts = []
        for name, weight in zip(settings.loss_names, weights, strict=True):
            loss = LOSSES[name]
            values = DEFAULTS | loss.defaults | settings.given_to_losses
            parts.append(Part(name, loss, weight, {key: values[key] for key in loss.uses}))
        likelihood = settings.sft_weight
        if likelihood is None:
            likelihood = sum(part.weight * part.loss.sft_weight for part in parts)
        return cls(tuple(parts), likelihood, settings.average_log_prob)

    @property
    def compares_averages(self) -> bool:
        """Returns whether metrics show log-probabilities per token; if parts differ, `average_log_prob` decides."""
        kinds = {part.loss.compares for part in self.parts} - {"either"}
        return kinds == {"average"} or (kinds != {"sum"} and self.by_average)

    @property
    def unit(self) -> str:
        """Returns the unit of the log-probabilities that are compared."""
        return "nats per token" if self.compares_averages else "nats"

    @property
    def reward_scale(self) -> float:
        """Returns the beta of the first part; 1 if it has none."""
        return float(self.parts[0].settings.get("beta") or 1.0)

    @property
    def target_margin(self) -> float | None:
        """Returns the target margin of log-probabilities of the first part, without margins of the data, or None."""
        settings = self.parts[0].settings
        return None if "alpha" in settings else settings.get("gamma_beta_ratio")

    @property
    def gamma_beta_ratio(self) -> float:
        """Returns the target margin for `pair_loss`: that of the first part that has one, or 0."""
        ratios = (part.settings.get("gamma_beta_ratio") for part in self.parts)
        return next((ratio for ratio in ratios if ratio is not None), 0.0)

    @property
    def reads_margins(self) -> bool:
        """Returns whether margins of the data change the loss."""
        return any("gamma_beta_ratio" in part.settings for part in self.parts)

    def shared(self, name: str) -> float | None:
        """Returns the value of a setting if all parts that use it agree; None otherwise."""
        values = {part.settings[name] for part in self.parts if name in part.settings}
        return values.pop() if len(values) == 1 else None

    def compared(self, scores: "AnswerScores") -> Tensor:
        """Returns the log-probabilities of answers that metrics show, (N,)."""
        return scores.average if self.compares_averages else scores.sum

    def losses(self, chosen: "AnswerScores", rejected: "AnswerScores", margin: Tensor) -> dict[str, Tensor]:
        """Returns the loss of each pair by each part, without the part's weight, (N,) each.

        Args:
            chosen, rejected: scores of the two answers of each pair.
            margin: target margin of each pair, (N,): `gamma_beta_ratio` plus the margin of the data.
        """
        return {part.name: self._loss(part, chosen, rejected, margin) for part in self.parts}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Returns the weighted sum of the parts, (N,)."""
        first, *rest = (part.weight * losses[part.name] for part in self.parts)
        return sum(rest, start=first)

    def _loss(self, part: Part, chosen: "AnswerScores", rejected: "AnswerScores", margin: Tensor) -> Tensor:
        by_average = part.loss.compares == "average" or (part.loss.compares == "either" and self.by_average)
        settings: dict[str, Any] = dict(part.settings)
        if "gamma_beta_ratio" in settings:
            # In a mix each part keeps its own target; the margin of the data is added to all.
            settings["gamma_beta_ratio"] = margin + (settings["gamma_beta_ratio"] - self.gamma_beta_ratio)
        compared = [scores.average if by_average else scores.sum for scores in (chosen, rejected)]
        return part.loss.function(*compared, **settings)


def settled_loss(settings: LossSettings) -> dict[str, Any]:
    """Returns all settings of the loss; an unset one has the value that the losses use, if that is one value."""
    objective = Objective.of(settings)
    used = {name: objective.shared(name) for name in DEFAULTS} | {"sft_weight": objective.sft_weight}
    given = {each.name: getattr(settings, each.name) for each in fields(LossSettings)}
    return given | {name: value for name, value in used.items() if given[name] is None}
