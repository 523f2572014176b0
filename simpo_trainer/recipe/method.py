"""`method`: the trainer that a recipe is for, and the handling of keys that were written for another trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..record.methods import METHODS, PREFERENCE_RATE
from ..train.other_trainers import as_text
from .file import Entry, Layer
from .keys import KEYS, keys_of


def method_of(layers: Sequence[Layer]) -> str:
    """Returns the method that the last layer with a `method` names; SimPO if there is none or it is unknown."""
    return _methods(layers)[-1]


def _methods(layers: Sequence[Layer]) -> list[str]:
    """Returns the method that each layer is written for: the one that it names, or else that of the layer before."""
    found, method = [], "simpo"
    for layer in layers:
        named = layer.entries["method"].value if "method" in layer.entries else method
        method = named if named in METHODS else "simpo"  # a wrong name becomes an error with the other values
        found.append(method)
    return found


def fit_to_method(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """Returns the layers without keys that the recipe's method does not read, and a notice for each kind of them.

    A beta has a different meaning under each method. So a layer that is written for another method than the recipe's
    final one keeps only the keys with the same meaning for both (data, model, budget).
    """
    methods = _methods(layers)
    method = methods[-1]
    kept: list[Layer] = []
    aside: dict[str, tuple[Entry, str]] = {}
    idle: dict[str, Entry] = {}
    for layer, written_for in zip(layers, methods, strict=True):
        if written_for != method:
            foreign = {key: entry for key, entry in layer.entries.items() if _means_another(key, written_for, method)}
            aside |= {key: (entry, written_for) for key, entry in foreign.items()}
        else:
            foreign = {key: entry for key, entry in layer.entries.items() if _is_idle(key, method)}
            idle |= foreign
        entries = {key: entry for key, entry in layer.entries.items() if key not in foreign}
        kept.append(replace(layer, entries=entries))
    given = {key for layer in kept for key in layer.entries}
    aside = {key: found for key, found in aside.items() if key not in given and _is_worth_telling(key, *found, method)}
    return kept, [*_aside(aside, method), *_idle(idle, method), *_other_rate(kept, methods)]


def _means_another(key: str, written_for: str, method: str) -> bool:
    theirs, ours = keys_of(written_for).get(key), keys_of(method).get(key)
    return theirs is not None and (ours is None or ours.owner is not theirs.owner)


def _is_idle(key: str, method: str) -> bool:
    return key in KEYS and key not in keys_of(method)


def _is_worth_telling(key: str, entry: Entry, written_for: str, method: str) -> bool:
    """Returns whether a value differs from the key's default under both methods."""
    known = [keys_of(each)[key] for each in (written_for, method) if key in keys_of(each)]
    usual = [key_of_method.default for key_of_method in known]
    return entry.value not in usual and [entry.value] not in usual


def _aside(aside: Mapping[str, tuple[Entry, str]], method: str) -> list[str]:
    if not aside:
        return []
    written_for = " and ".join(dict.fromkeys(written_for for _, written_for in aside.values()))
    values = ", ".join(f"{key}: {as_text(entry.value)}" for key, (entry, _) in aside.items())
    instead = {key: keys_of(method)[key].default for key in aside if key in keys_of(method)}
    taken = ", ".join(f"{key}: {as_text(value)}" for key, value in instead.items() if value is not None)
    return [
        f"{values}: written for method {written_for} and ignored under method {method}"
        + (f", which takes {taken}" if taken else "")
        + f". To set a value for it, write it in the file with method: {method} or on the command line."
    ]


def _idle(idle: Mapping[str, Entry], method: str) -> list[str]:
    if not idle:
        return []
    return [f"{', '.join(idle)}: no effect under method {method}. Remove such keys."]


def _other_rate(layers: Sequence[Layer], methods: Sequence[str]) -> list[str]:
    """Returns a notice if SFT keeps a learning rate of preference training, with which it learns almost nothing."""
    if methods[-1] != "sft":
        return []
    rates: list[tuple[Any, str]] = [
        (layer.entries["learning_rate"].value, written_for)
        for layer, written_for in zip(layers, methods, strict=True)
        if "learning_rate" in layer.entries
    ]
    rate, written_for = rates[-1] if rates else (None, "sft")
    if written_for == "sft" or not isinstance(rate, int | float) or rate > PREFERENCE_RATE:
        return []
    return [f"learning_rate: {rate:g} was written for method {written_for} and is kept; SFT usually takes 2e-5."]
