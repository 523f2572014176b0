"""A run that goes on with other settings than before: what may change, what is told, and how it takes effect."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import SimPOError
from ..log import get_logger
from ..record.differences import Differences, differences, told
from ..record.folders import STATE, step_of
from ..record.seal import read_seal
from .checkpoints import answer_of_main
from .identity import run_circumstances

logger = get_logger(__name__)

# Schedules that have state instead of a formula of the step: they cannot be put on another course.
_WITHOUT_FORMULA = ("reduce_lr_on_plateau", "greedy")
# What decides which pairs a step takes.
_OF_PAIRS = {"seed", "data_seed", "pairs of a step", "the training pairs", "train_sampling_strategy"}
# What optimiser and schedule are made of.
_OF_OPTIMISER = {
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
}


def differences_since(folder: Path, identity: Mapping[str, Any]) -> Differences:
    """Returns what this run has otherwise than the one whose checkpoint, or whose end, a folder holds.

    Args:
        folder: one without a seal, or with that of an earlier version, differs in nothing that is known.
        identity: see :func:`~simpo_trainer.train.identity.run_identity`.
    """
    return differences((read_seal(folder) or {}).get("run") or {}, identity)


def refuse(found: str, changed: Differences, *, allowed: bool, allow: bool = True) -> None:
    """Refuse to go on with other settings, unless that is allowed.

    Args:
        found: the beginning of the error: which folder holds another run.
        changed: what differs; nothing is refused if it is empty.
        allowed: the setting `allow_changes`.
        allow: whether that would help, and is named as a way out.

    Raises:
        SimPOError: shows each value old and new, and the ways out.
    """
    if not changed or (allowed and allow):
        return
    ways = "; or set allow_changes: true (--allow_changes), and the new settings count from there on" if allow else ""
    raise SimPOError(
        f"{found}: {told(changed)}. Set that back to go on{ways}; or set output_dir to another folder; or start over "
        "with --resume_from_checkpoint false: its checkpoints are kept as _earlier-*, and its model is overwritten at "
        "the end."
    )


def refuse_another_run(folder: Path, identity: Mapping[str, Any], *, allowed: bool, named: bool = False) -> Differences:
    """Returns what this run has otherwise than a checkpoint's; what cannot change in its middle is always refused.

    Args:
        folder: the checkpoint.
        identity: that of this run.
        allowed: the setting `allow_changes`.
        named: whether the user has asked for this checkpoint. Then all weights that train may come from it, whatever
            model they were loaded into.

    Raises:
        SimPOError: shows each value old and new, and the ways out.
    """
    changed = differences_since(folder, identity)
    asked = {name: values for name, values in changed.items() if not (named and name == "the base model")}
    refuse(f"{folder} is a checkpoint of a run that differs from this one", asked, allowed=allowed)
    kept = {name: values for name, values in changed.items() if _is_fixed(name, values, identity)}
    refuse(f"{folder} is a checkpoint of a run whose state does not fit this one", kept, allowed=allowed, allow=False)
    return changed if allowed else asked


def _is_fixed(name: str, values: Sequence[Any], identity: Mapping[str, Any]) -> bool:
    """Returns whether the state in a checkpoint is lost, or means something else, when this changes."""
    if name == "lr_scheduler_type":
        return any(value in _WITHOUT_FORMULA for value in values)
    if name == "learning_rate":
        return identity.get("lr_scheduler_type") in _WITHOUT_FORMULA
    if name == "adapter":
        return None in values
    if name == "the base model":
        return identity.get("adapter") is not None
    return name in ("method", "optim", "optim_args", "optim_target_modules")


def changes_of(trainer: Any, checkpoint: Path, *, allowed: bool) -> list[dict[str, Any]]:
    """Returns all changes of a run that goes on from a checkpoint, and tells of those that are new.

    Every process must call it.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`, whose identity is known.
        checkpoint: where it goes on.
        allowed: the setting `allow_changes`.

    Returns:
        The step of each change, and by name the values before and after; those before the checkpoint come first.

    Raises:
        SimPOError: the run differs in what changes the result, and that is not allowed or not possible.
    """
    deepspeed = trainer.is_deepspeed_enabled
    answer = answer_of_main(
        lambda: json.dumps(_changes(checkpoint, trainer.identity, run_circumstances(trainer), allowed, deepspeed))
    )
    return json.loads(answer)


def _changes(
    checkpoint: Path, identity: Mapping[str, Any], circumstances: Mapping[str, Any], allowed: bool, deepspeed: bool
) -> list[dict[str, Any]]:
    seal, step = read_seal(checkpoint) or {}, step_of(checkpoint)
    changed = refuse_another_run(checkpoint, identity, allowed=allowed, named=True)
    if deepspeed:
        kept = {name: values for name, values in changed.items() if name in _OF_OPTIMISER}
        refuse(f"DeepSpeed keeps the optimiser and the schedule of {checkpoint}", kept, allowed=allowed, allow=False)
    if harmless := differences(seal.get("circumstances") or {}, circumstances):
        logger.info(f"Since step {step} what does not change the result has changed: {told(harmless)}.")
    earlier = list(seal.get("changes") or [])
    if not changed:
        return earlier
    pairs = (
        " The pairs are those that a run with the new settings takes from there on." if _OF_PAIRS & {*changed} else ""
    )
    logger.warning(f"From step {step} on, settings that change the result are new: {told(changed)}.{pairs}")
    return [*earlier, {"step": step, "settings": changed}]


# ---- Taking effect ----

# What a group of an optimiser says of its settings; all else in it may be state.
GROUP_SETTINGS = ("initial_lr", "weight_decay", "betas", "eps", "momentum", "nesterov", "amsgrad")


class OwnSettings:
    """The settings of optimiser and schedule as this run's arguments made them, to be set again after a resume.

    torch takes both from a checkpoint, whatever the arguments say.
    """

    def __init__(self, optimizer: Any, scheduler: Any):
        self._groups = [
            {name: group[name] for name in GROUP_SETTINGS if name in group} for group in optimizer.param_groups
        ]
        self._peaks = list(getattr(_of_torch(scheduler), "base_lrs", []))

    def restore(self, optimizer: Any, scheduler: Any) -> None:
        """Set them again; the learning rate is the one that this run's schedule has at the step that was reached."""
        for group, own in zip(optimizer.param_groups, self._groups, strict=True):
            group.update(own)
        schedule = _of_torch(scheduler)
        formulas = getattr(schedule, "lr_lambdas", None)
        if formulas is None:
            return
        schedule.base_lrs = list(self._peaks)
        rates = [peak * formula(schedule.last_epoch) for peak, formula in zip(self._peaks, formulas, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def _of_torch(scheduler: Any) -> Any:
    """Returns the schedule of torch that accelerate or DeepSpeed has wrapped."""
    return getattr(scheduler, "scheduler", scheduler)


class ChangesCallback(TrainerCallback):
    """Puts right what transformers takes from a checkpoint as it was: intervals, and the best checkpoint so far."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint = self.trainer.resumed_from
        if checkpoint is None:
            return
        state.compute_steps(args, state.max_steps)
        latest = self.trainer.changes[-1] if self.trainer.changes else {"step": None, "settings": {}}
        if latest["step"] == state.global_step and _OF_BEST & {*latest["settings"]}:
            logger.warning("The best checkpoint so far is forgotten: it was the best by another metric.")
            _forget_best(state)
        else:
            settle_best(state, checkpoint)


_OF_BEST = {"metric_for_best_model", "greater_is_better"}


def settle_best(state: TrainerState, checkpoint: Path) -> None:
    """Find the best checkpoint so far, which may have been moved or set aside with the one that is gone on from.

    Where the folder had its place another run may have put one of its own since.

    Args:
        state: that of the checkpoint; transformers has cleared a path in it to a folder that is not there.
        checkpoint: where the run goes on.
    """
    saved = TrainerState.load_from_json(str(checkpoint / STATE))
    if saved.best_model_checkpoint is None:
        return
    beside = sorted(checkpoint.parent.glob(f"*checkpoint-{saved.best_global_step}"))
    there = [folder for folder in (Path(saved.best_model_checkpoint), *beside) if _is_best_of(saved, folder)]
    if there:
        state.best_model_checkpoint = str(there[0])
        return
    logger.warning(
        f"The best checkpoint so far, {saved.best_model_checkpoint}, is gone: the best of those to come is taken."
    )
    _forget_best(state)


def _is_best_of(saved: TrainerState, folder: Path) -> bool:
    """Returns whether a folder holds the checkpoint that a state knows as its best."""
    try:
        own = TrainerState.load_from_json(str(folder / STATE))
    except (OSError, ValueError, TypeError):
        return False
    return (own.global_step, own.best_metric) == (saved.best_global_step, saved.best_metric)


def _forget_best(state: TrainerState) -> None:
    state.best_metric = state.best_model_checkpoint = state.best_global_step = None
