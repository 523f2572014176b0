"""`Finding`: one line of what the health monitor saw in a run, for the log, the manifest, the card and the report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What a finding is of, beside the names of evaluation sets ("eval", "eval_<set>").
TRAINING, SETTINGS, SAMPLES = "train", "settings", "samples"


@dataclass(frozen=True)
class Finding:
    """What was seen, what usually causes it, and what to change.

    Args:
        rule: the name of the rule that found it.
        step: the optimiser step at which it was seen.
        where: "train", "settings", "samples", or the name of an evaluation set.
        metric: the metric of :mod:`~simpo_trainer.record.metric_table` on whose curve it stands; None without one.
        seen: what was seen, with numbers; it follows the step.
        cause: what usually causes it.
        change: which setting to change to what.
        amount: how bad it is, in the rule's own unit; it is told again when this grows.
        collapse: whether the model is being ruined, so that `stop_on_collapse` stops the run.
    """

    rule: str
    step: int
    where: str
    metric: str | None
    seen: str
    cause: str
    change: str
    amount: float = 1.0
    collapse: bool = False

    @property
    def line(self) -> str:
        """Returns the finding as one line."""
        return f"Step {self.step}, {_PLACES.get(self.where) or _held_out(self.where)}: {self.seen} {self.advice}"

    @property
    def advice(self) -> str:
        """Returns the usual cause and the change."""
        return f"Usual cause: {self.cause}. {self.change}"

    def as_json(self) -> dict[str, Any]:
        """Returns the finding as it stands in a manifest."""
        return asdict(self)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Finding":
        """Returns the finding that `as_json` wrote."""
        return cls(**{name: found[name] for name in cls.__dataclass_fields__ if name in found})


_PLACES = {TRAINING: "training pairs", SETTINGS: "settings", SAMPLES: "sampled answers"}


def _held_out(name: str) -> str:
    own = name.removeprefix("eval").removeprefix("_")
    return f"held-out pairs of {own}" if own else "held-out pairs"
