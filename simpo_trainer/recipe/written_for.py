"""What becomes of a recipe's beta and its like where a later layer, such as the command line, changes the loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..loss.losses import LOSSES
from .file import Entry, Layer
from .other_trainers import as_text

# Settings whose meaning depends on the loss. Others mean one thing, or belong to one loss alone.
_BY_LOSS = ("beta", "gamma_beta_ratio", "sft_weight", "loss_weights")


def fit_to_loss(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """The layers without settings that were written for another loss than the recipe's last word, and a notice of them.

    A beta of 2 is SimPO's, and twenty times that of CPO: whoever changes the loss alone should get the new one's own.
    """
    written = _losses(layers)
    kept: list[Layer] = []
    aside: dict[str, Entry] = {}
    for layer, names in zip(layers, written, strict=True):
        foreign = {key: entry for key, entry in layer.entries.items() if _means_another(key, names, written[-1])}
        aside |= foreign
        entries = {key: entry for key, entry in layer.entries.items() if key not in foreign}
        kept.append(replace(layer, entries=entries))
    given = {key for layer in kept for key in layer.entries}
    return kept, _notice({key: entry for key, entry in aside.items() if key not in given}, written[-1])


def _losses(layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """The losses that each layer is written for: those that it names, or else those of the layer before."""
    found: list[tuple[str, ...]] = []
    names: tuple[str, ...] = ("sigmoid",)
    for layer in layers:
        if "loss_type" in layer.entries:
            value: Any = layer.entries["loss_type"].value
            names = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
        found.append(names)
    return found


def _means_another(key: str, written: tuple[str, ...], now: tuple[str, ...]) -> bool:
    if key not in _BY_LOSS or written == now or not all(name in LOSSES for name in (*written, *now)):
        return False  # an unknown loss is told with the other values
    if key == "sft_weight":
        return {LOSSES[name].sft_weight for name in written} != {LOSSES[name].sft_weight for name in now}
    return key == "loss_weights" or not all(_has_simpos_reward(name) for name in (*written, *now))


def _has_simpos_reward(name: str) -> bool:
    """Whether beta and gamma_beta_ratio are those of SimPO."""
    return "gamma_beta_ratio" in LOSSES[name].uses and not LOSSES[name].defaults.keys() & {"beta", "gamma_beta_ratio"}


def _notice(aside: dict[str, Entry], names: tuple[str, ...]) -> list[str]:
    if not aside:
        return []
    values = ", ".join(f"{key}: {as_text(entry.value)}" for key, entry in aside.items())
    which = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    return [
        f"{values}: written for another loss and left aside for loss_type: {which}, which takes its own. What is given "
        "beside loss_type, in the same file or on the command line, counts."
    ]
