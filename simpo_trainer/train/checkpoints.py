"""Checkpoints to go on from: finding them, setting others aside, and refusing those that do not fit."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model_state_dict
from torch.optim import Optimizer

from ..errors import SimPOError
from ..log import get_logger
from ..model.weights import of_embeddings, saved_shapes
from ..record.folders import STATE, checkpoints, is_checkpoint, step_of, torn_checkpoints
from ..record.seal import SEAL, broken_files, is_open, read_seal, remove_checkpoint

logger = get_logger(__name__)

# What each part of a checkpoint may be called: first in one process and under DDP, then under FSDP and DeepSpeed.
_PARTS = {
    "optimiser state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "scheduler state": ("scheduler.pt", "global_step*"),
    "weights": (
        *("model.safetensors*", "adapter_model.safetensors", "*/adapter_model.safetensors"),
        *("model-*.safetensors", "pytorch_model*", "global_step*"),
    ),
}


def find_checkpoint(output_dir: Path, wanted: str | Path | bool | None) -> Path | None:
    """Returns the checkpoint that `resume_from_checkpoint` asks for, None for a start from the beginning.

    The main process looks at every file of it, and every process gets its answer; all must call it.

    Args:
        output_dir: where True looks for the newest one that is whole.
        wanted: a folder, True or nothing.

    Raises:
        SimPOError: there is none, or the one that is named is not whole.
    """
    if not wanted:
        return None
    return Path(answer_of_main(lambda: str(_find(output_dir, wanted))))


def answer_of_main(ask: Callable[[], str]) -> str:
    """Returns the main process's answer on every process, or raises its error there."""
    state, answer = PartialState(), ["", ""]
    if state.is_main_process:
        try:
            answer[0] = ask()
        except SimPOError as error:
            answer[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1]:
        raise SimPOError(answer[1])
    return answer[0]


def _find(output_dir: Path, wanted: Any) -> Path:
    there = checkpoints(output_dir)
    if wanted is True:
        return _newest_whole(output_dir, there)
    found = Path(wanted).expanduser()
    if not is_checkpoint(found):
        hint = (
            f"Complete ones are: {', '.join(map(str, there))}" if there else f"There is no complete one in {output_dir}"
        )
        if is_open(found):
            raise SimPOError(f"{found} was not saved to the end, or its {SEAL} was changed. {hint}.")
        raise SimPOError(f"resume_from_checkpoint {wanted} is not a checkpoint-N folder with a {STATE}. {hint}.")
    if broken := _broken(found):
        others = [str(folder) for folder in there if folder.resolve() != found.resolve()]
        hint = f"Others are: {', '.join(others)}" if others else "There is no other one"
        raise SimPOError(f"{found} is not whole: {'; '.join(broken[:3])}. Resume from another. {hint}.")
    _accept(found)
    return found


def _newest_whole(output_dir: Path, there: list[Path]) -> Path:
    """Returns the newest checkpoint of which no file is missing or changed; those passed over are told."""
    told = [f"{folder} was not saved to the end" for folder in torn_checkpoints(output_dir)]
    for folder in reversed(there):
        broken = _broken(folder)
        if not broken:
            newer = [text for text in told if step_of(Path(text.partition(" ")[0])) > step_of(folder)]
            for text in newer:
                logger.warning(f"{text}: the run goes on from {folder.name}.")
            _accept(folder)
            return folder
        told.append(f"{folder} is not whole ({broken[0]})")
    raise SimPOError(
        "resume_from_checkpoint is true, but there is no complete checkpoint in "
        f"{output_dir}{''.join(f'; {text}' for text in told)}. Leave resume_from_checkpoint out to start from the "
        "beginning."
    )


def _accept(folder: Path) -> None:
    """Check that a checkpoint has all that is needed to go on, and tell of one that has no seal."""
    check_complete(folder)
    tell_without_seal(folder)


def tell_without_seal(folder: Path) -> None:
    """Log a warning where a checkpoint has no seal, so that its files cannot be checked."""
    if read_seal(folder) is None:
        logger.warning(
            f"{folder} has no {SEAL}, as checkpoints of earlier versions and of the Hub: its files cannot be checked, "
            "and it is taken as it is."
        )


def _broken(folder: Path) -> list[str]:
    try:
        sealed = (folder / SEAL).stat().st_mtime_ns
    except OSError:
        return []
    return list(_broken_since(folder.resolve(), sealed))


@cache
def _broken_since(folder: Path, sealed: int) -> tuple[str, ...]:
    """Returns the broken files of a checkpoint; it is asked for twice at the start of a run, and read once."""
    return tuple(broken_files(folder))


def rotate_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints by step, and those that were not saved to the end.

    Args:
        output_dir: folder of the run; its newest checkpoint is sealed.
        limit: how many to keep; None or 0 for all.
        best: the best one, which is kept besides.
    """
    for folder in torn_checkpoints(output_dir):
        remove_checkpoint(folder)
    there = checkpoints(output_dir)
    if not limit or limit < 0:
        return
    kept = {folder.resolve() for folder in (there[-1:] + ([Path(best)] if best else []))}
    surplus = len(there) - max(limit, len(kept & {folder.resolve() for folder in there}))
    for folder in [folder for folder in there if folder.resolve() not in kept][: max(0, surplus)]:
        remove_checkpoint(folder)


def set_aside_earlier(output_dir: Path, resumed: Path | None = None) -> None:
    """Rename the checkpoints that are not this run's: neither a later resume nor the rotation must take them for it.

    Args:
        output_dir: folder of the run.
        resumed: the checkpoint that the run goes on from; None where it starts over. If it lies in `output_dir`, so do
            those that led to it, and only the ones of later steps are renamed: this run makes them anew.
    """
    earlier, whose, now = checkpoints(output_dir), "of an earlier run", "starts over"
    if resumed:
        now = f"goes on from {resumed}"
        if resumed.resolve() in [folder.resolve() for folder in earlier]:
            earlier = [folder for folder in earlier if step_of(folder) > step_of(resumed)]
            whose = "of later steps"
    if not earlier:
        return
    for folder in earlier:
        kept = output_dir / f"_earlier-{folder.name}"
        number = 1
        while kept.exists():
            number += 1
            kept = output_dir / f"_earlier-{number}-{folder.name}"
        folder.rename(kept)
    logger.warning(
        f"{output_dir} holds checkpoints {whose} up to {earlier[-1].name}; this run {now}, and they are kept as "
        f"{output_dir}/_earlier-*. To go on from the last of them instead, stop this run and use "
        f"--resume_from_checkpoint {kept}"
    )


def check_adapter_fits(checkpoint: Path, model: PeftModel) -> None:
    """Refuse a checkpoint of another adapter than the one that is to go on training.

    peft only warns of weights that are missing, and the optimiser's state is of other weights then.

    Args:
        checkpoint: read are the names and shapes in its safetensors files, if it has some.
        model: not wrapped.

    Raises:
        SimPOError: names weights that are missing, too many, or of another shape.
    """
    saved = saved_shapes(checkpoint)
    if not saved:
        return
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    # ZeRO-3 leaves an empty tensor and keeps the shape of the whole beside it.
    needed = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in weights.items()}
    extra = saved.keys() - needed.keys()
    extra -= of_embeddings(extra, model)
    reshaped = [name for name in needed.keys() & saved.keys() if needed[name] != saved[name]]
    differences = [
        *(f"{name} is not in the checkpoint" for name in sorted(needed.keys() - saved.keys())[:2]),
        *(f"{name} is not in this run's adapter" for name in sorted(extra)[:2]),
        *(f"{name} is {saved[name]} there and {needed[name]} here" for name in sorted(reshaped)[:2]),
    ]
    if differences:
        raise SimPOError(
            f"{checkpoint} holds another adapter than this run trains (other LoRA targets or another rank?): "
            f"{'; '.join(differences)}. Set the settings of the adapter back, or start a new run in another output_dir."
        )


def check_processes_fit(checkpoint: Path, processes: int) -> None:
    """Refuse a checkpoint of ZeRO, which is in parts, one for each process, for another number of processes.

    Raises:
        SimPOError: says both numbers.
    """
    saved = (read_seal(checkpoint) or {}).get("processes", processes)
    if saved != processes:
        raise SimPOError(
            f"{checkpoint} was saved by DeepSpeed in {saved} parts, one for each process, and this run has "
            f"{processes}. Start it with {saved} processes (--num-processes {saved}); or start a new run in another "
            "output_dir."
        )


def check_optimizer_fits(
    checkpoint: Path, saved: dict[str, Any], optimizer: Optimizer, *, settings: bool = True
) -> None:
    """Refuse the optimiser state of a checkpoint that belongs to other weights or was made with other settings.

    torch takes state of any shape, and fused AdamW writes outside of its buffers then. It also takes the learning rate
    and the like from the checkpoint, whatever the settings say now.

    Args:
        checkpoint: named in messages.
        saved: the state dictionary in it.
        optimizer: that of this run.
        settings: whether its settings must be the same too.

    Raises:
        SimPOError: says what differs.
    """
    groups, own = saved["param_groups"], optimizer.param_groups
    counts, expected = ([len(group["params"]) for group in each] for each in (groups, own))
    if counts != expected:
        raise SimPOError(
            f"The optimiser in {checkpoint} moves {sum(counts)} weights, this run's {sum(expected)} (in groups of "
            f"{counts} and {expected}). Set back what is trained, or start a new run, in another output_dir."
        )
    for group, mine in zip(groups, own, strict=True):
        if "rank" in mine:  # GaLore and similar ones keep state of projected weights
            continue
        for number, parameter in zip(group["params"], mine["params"], strict=True):
            _check_state(checkpoint, saved["state"].get(number, {}), tuple(parameter.shape))
    changed = {
        _SETTINGS[name]: (group.get(name), mine[name])
        for group, mine in zip(groups, own, strict=True)
        for name in _SETTINGS
        if name in mine and not _same(group.get(name), mine[name])
    }
    if changed and settings:
        shown = "; ".join(f"{name} is {now} and was {before}" for name, (before, now) in changed.items())
        raise SimPOError(
            f"{checkpoint} was trained with other settings of the optimiser, which a resume keeps: {shown}. Set them "
            "back; or start a new run in another output_dir with the checkpoint as model_name_or_path."
        )


# What an optimiser's group says of its settings, and what a recipe calls it. Some groups hold state too.
_SETTINGS = {
    "initial_lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "(adam_beta1, adam_beta2)",
    "eps": "adam_epsilon",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "amsgrad": "amsgrad",
}
# State that has an element for each of the weight.
_ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def _check_state(checkpoint: Path, state: dict[str, Any], shape: tuple[int, ...]) -> None:
    for name in _ELEMENTWISE:
        found = tuple(getattr(state.get(name), "shape", shape))
        if found != shape:
            raise SimPOError(
                f"The optimiser state in {checkpoint} is of other weights than this run trains: {name} of shape "
                f"{found} for a weight of shape {shape}. Set back what is trained, or start a new run, in another "
                "output_dir."
            )


def check_schedule_fits(checkpoint: Path, saved: Sequence[float] | None, own: Sequence[float] | None) -> None:
    """Refuse a learning rate that the schedule in a checkpoint does not have; a resume would keep that one.

    Args:
        checkpoint: named in messages.
        saved: peak learning rates of the schedule that was loaded; None where a schedule has none.
        own: those that this run's settings gave.

    Raises:
        SimPOError: they differ.
    """
    if saved is not None and own is not None and list(saved) != list(own):
        raise SimPOError(
            f"{checkpoint} was trained with learning_rate {saved[0]:g}, which a resume keeps; this run's is "
            f"{own[0]:g}. Set learning_rate: {saved[0]:g}; or start a new run in another output_dir with the "
            "checkpoint as model_name_or_path."
        )


def _same(saved: Any, own: Any) -> bool:
    return list(saved) == list(own) if isinstance(own, tuple | list) and saved is not None else saved == own


def check_complete(checkpoint: Path) -> None:
    """Check that a checkpoint has weights, optimiser state and schedule.

    Raises:
        SimPOError: names what is missing.
    """
    missing = [
        part
        for part, patterns in _PARTS.items()
        if not any(next(checkpoint.glob(pattern), None) for pattern in patterns)
    ]
    if missing:
        raise SimPOError(
            f"{checkpoint} holds no {' and no '.join(missing)} (was it saved with save_only_model, or not copied "
            "whole?): training would go on with fresh ones, not as it stopped. Resume from a full checkpoint, or start "
            "a new run with the folder as model_name_or_path."
        )
