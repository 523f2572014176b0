"""Ignore a recipe's beta and similar settings where a later layer, such as the command line, changes the loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..loss.losses import LOSSES
from ..train.other_trainers import as_text
from .file import Entry, Layer

# Settings whose meaning depends on the loss. Others have one meaning, or belong to one loss only.
_BY_LOSS = ("beta", "gamma_beta_ratio", "sft_weight", "loss_weights")


def fit_to_loss(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """Returns the layers without settings that were written for another loss than the final one, and a notice of them.

    SimPO's beta is 2, twenty times that of CPO: a user who changes only the loss should get the new loss's defaults.
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
    """Returns the losses that each layer is written for: those that it names, or else those of the layer before."""
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
        return False  # an unknown loss becomes an error with the other values
    if key == "sft_weight":
        return {LOSSES[name].sft_weight for name in written} != {LOSSES[name].sft_weight for name in now}
    return key == "loss_weights" or not all(_has_simpos_reward(name) for name in (*written, *now))


def _has_simpos_reward(name: str) -> bool:
    """Returns whether a loss uses beta and gamma_beta_ratio with SimPO's defaults."""
    return "gamma_beta_ratio" in LOSSES[name].uses and not LOSSES[name].defaults.keys() & {"beta", "gamma_beta_ratio"}


def _notice(aside: dict[str, Entry], names: tuple[str, ...]) -> list[str]:
    if not aside:
        return []
    values = ", ".join(f"{key}: {as_text(entry.value)}" for key, entry in aside.items())
    which = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    return [
        f"{values}: written for another loss and ignored for loss_type: {which}, which takes its own. To set a value "
        "for it, write it in the file with loss_type or on the command line."
    ]
