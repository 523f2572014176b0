"""The metric that chooses the best checkpoint: an evaluation must measure it, and it must have a better direction."""

from collections.abc import Collection, Mapping
from typing import Any

from transformers import TrainingArguments

from ..errors import SimPOError, did_you_mean
from ..record.metric_table import evaluated_name, measured_names, more_is_better


def direction_problems(metric: str | None, greater_is_better: bool | None) -> list[str]:
    """Returns a sentence if nobody says whether more or less of `metric_for_best_model` is better."""
    if metric is None or greater_is_better is not None:
        return []
    name = evaluated_name(metric)
    if name is None or more_is_better(name) is not None:
        return []
    return [
        f"metric_for_best_model is {metric}, of which neither more nor less is better in itself. Set greater_is_better "
        "to true or false, or choose another, such as eval_loss or eval_rewards/accuracies."
    ]


def greater_is_better(metric: str) -> bool:
    """Returns whether more of a metric is better; by transformers' rule for one that a user's function measures."""
    name = evaluated_name(metric)
    better = None if name is None else more_is_better(name)
    return not metric.endswith("loss") if better is None else better


def check_best_metric(args: TrainingArguments, eval_dataset: Any = None, absent: Collection[str] = ()) -> None:
    """Check that evaluations will measure `metric_for_best_model`: otherwise the first one would end the run.

    Args:
        args: the settings.
        eval_dataset: a mapping from names to evaluation sets puts the names into those of the metrics.
        absent: metrics that this run does not measure.

    Raises:
        SimPOError: no evaluation measures it.
    """
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    asked = metric.removeprefix("eval_")
    rests = [asked.removeprefix(name) for name in sets if asked.startswith(name)]
    if any(evaluated_name(rest) == rest and rest not in absent for rest in rests):
        return
    choices = [own for own in measured_names() if own not in absent and more_is_better(own) is not None]
    known = [f"{name}{own}" for name in sets for own in choices]
    meant = did_you_mean(asked, known, 1) or f" It must be one of {', '.join(known)}."
    raise SimPOError(f"metric_for_best_model is {metric}, which no evaluation of this run measures.{meant}")
