"""Optimiser and schedule are built on a dummy first: a mistake in their settings costs no loading of data and model."""

import re
from copy import copy
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..errors import SimPOError, first_line

# A number of steps with which every schedule can be made.
_STEPS = 1000


def check_optimisation(args: TrainingArguments, given: tuple[Optimizer | None, Any] = (None, None)) -> None:
    """Build the optimiser and the schedule that the settings ask for, on a few dummy weights.

    Args:
        args: the settings.
        given: optimiser and schedule that are used instead.

    Raises:
        SimPOError: one of them cannot be built, or the two do not go together.
    """
    problems = []
    optimizer: Optimizer | None = given[0]
    if optimizer is None:
        try:
            optimizer = _optimizer(args)
        except Exception as error:  # whatever an optimiser of another package raises
            problems.append(
                f"optim is {_text(args.optim)}, which cannot be built: {first_line(error).rstrip('.')}. Mend that, or "
                "leave out optim and optim_args."
            )
    if given[1] is None:
        problems += _schedule_problems(args, optimizer)
    if problems:
        raise SimPOError("\n".join(problems))


def _optimizer(args: TrainingArguments) -> Optimizer:
    dummy = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if args.optim_target_modules:
        args = copy(args)
        args.optim_target_modules = "all-linear"  # the names are those of the model
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, dummy)  # type: ignore[arg-type]
    own = [settings.pop(name) for name in ("params", "model", "optimizer_dict") if name in settings]
    if isinstance(kind, type) and issubclass(kind, Optimizer):
        return kind(own[0] if own else dummy.parameters(), **settings)
    return kind()(dummy, **settings)


def _text(name: Any) -> str:
    return str(getattr(name, "value", name))


def _schedule_problems(args: TrainingArguments, optimizer: Optimizer | None) -> list[str]:
    kind = SchedulerType(args.lr_scheduler_type)
    name = kind.value
    if _text(args.optim).startswith("schedule_free") and not name.startswith("constant"):
        return [
            f"optim is {_text(args.optim)}, which averages weights in place of a schedule, and lr_scheduler_type is "
            f"{name}, which would lower the learning rate too. Set lr_scheduler_type: constant_with_warmup."
        ]
    if kind is SchedulerType.REDUCE_ON_PLATEAU and args.greater_is_better:
        if (args.lr_scheduler_kwargs or {}).get("mode") != "max":  # type: ignore[union-attr]
            return [
                f"lr_scheduler_type is {name}, which waits for {args.metric_for_best_model} to fall, and more of that "
                "is better. Set lr_scheduler_kwargs: {mode: max}."
            ]
    try:
        get_scheduler(
            kind,
            optimizer=optimizer or torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(_STEPS),
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
        )
    except (TypeError, ValueError) as error:
        return [f"lr_scheduler_type is {name}, and {_schedule_problem(str(error))}"]
    return []


def _schedule_problem(error: str) -> str:
    """Returns the problem and its remedy, from the error of a function that was called with `lr_scheduler_kwargs`."""
    if missing := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", error):
        names = re.findall(r"'(\w+)'", missing[1])
        given = ", ".join(f"{name}: ..." for name in names)
        return f"it needs {' and '.join(names)}. Set lr_scheduler_kwargs: {{{given}}}."
    if unexpected := re.search(r"unexpected keyword argument '(\w+)'", error):
        return f"it does not take {unexpected[1]}. Remove that from lr_scheduler_kwargs."
    return f"it cannot be made: {error.rstrip('.')}. Correct lr_scheduler_kwargs."
