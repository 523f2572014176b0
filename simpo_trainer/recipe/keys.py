"""The keys of a recipe: the class that owns each, its type, and the message for a wrong value."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import cache
from inspect import get_annotations
from typing import Any, Literal, get_type_hints

from ..baselines.settings import ARGUMENTS, MethodConfig, own_keys, shared_keys
from ..data.settings import DataConfig
from ..errors import did_you_mean, near
from ..loss.settings import LossSettings
from ..model.settings import ModelSettings
from ..record.methods import METHODS
from ..tokens.settings import RowSettings
from ..train.config import SimPOConfig
from ..train.other_trainers import OTHER_TRAINERS
from ..value_types import convert, narrow, needed
from ..value_types import takes_bool as takes_bool_type
from .answer_keys import AnswerKeys
from .file import Entry
from .model_keys import ModelKeys


@dataclass(frozen=True)
class Key:
    """A key that a recipe may hold: the class that owns it, its field, and the type a recipe must give."""

    owner: type
    field: Field
    hint: Any
    own_default: Any = None

    @property
    def default(self) -> Any:
        """Returns the value that is used without the key, in the key's type; None where it is decided elsewhere."""
        if self.own_default is not None:
            return self.own_default
        value = self.field.default_factory() if self.field.default_factory is not MISSING else self.field.default
        return None if value is None else convert(value, self.hint)


# Types of keys for which a recipe takes more, or less, than the field's annotation says.
_OWN_HINTS: dict[str, Any] = {
    "fsdp": str | bool | None,  # annotated as text because of argparse
    "method": Literal[tuple(METHODS)],
    "model_init_kwargs": dict[str, Any] | None,
    "resume_from_checkpoint": str | bool | None,  # true: the last checkpoint
}


def _keys(*owners: type) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for owner in owners:
        hints = get_type_hints(owner)
        for field in fields(owner):
            keys[field.name] = Key(owner, field, _OWN_HINTS.get(field.name, narrow(hints[field.name], field)))
    return keys


KEYS = _keys(ModelKeys, DataConfig, SimPOConfig, MethodConfig, AnswerKeys)

# SimPO's own settings, stage by stage, without the fields of `TrainingArguments` that it does not redefine.
SIMPO_KEYS = [
    name for stage in (LossSettings, RowSettings, ModelSettings, SimPOConfig) for name in get_annotations(stage)
]


@cache
def keys_of(method: str) -> dict[str, Key]:
    """Returns the keys that a recipe of this method reads; :data:`KEYS` for SimPO."""
    if METHODS[method].is_simpo:
        return KEYS
    read = {name: key for name, key in KEYS.items() if key.owner is not SimPOConfig or name in shared_keys(method)}
    read |= {name: replace(read[name], own_default=value) for name, value in METHODS[method].usual.items()}
    theirs = _keys(ARGUMENTS[method])
    return read | {name: key for name, key in theirs.items() if name in own_keys(method)}


def check_entries(entries: Mapping[str, Entry], known: Mapping[str, Key] = KEYS) -> tuple[dict[str, Any], list[str]]:
    """Returns the converted values of correct entries, and one problem for each other entry."""
    recipe = {key: entry.value for key, entry in entries.items()}
    values: dict[str, Any] = {}
    problems = []
    for key, entry in entries.items():
        is_simpos = key not in known or known[key].owner is SimPOConfig
        foreign = OTHER_TRAINERS[key](entry.value, recipe) if key in OTHER_TRAINERS and is_simpos else None
        if foreign:
            problems.append(f"{entry.place}{key}: {foreign}.")
        elif key not in known:
            problems.append(f"{entry.place}unknown key {key}{_meant(key, known)}")
        else:
            try:
                values[key] = convert(entry.value, known[key].hint, entry.text)
            except ValueError:
                found = json.dumps(entry.value, default=str, ensure_ascii=False)
                problems.append(f"{entry.place}{key} is {found}; it must be {needed(known[key].hint, entry.value)}")
    return values, problems


# Options of `simpo train` that are not keys of a recipe.
_OPTIONS = ("launcher", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")


def _meant(key: str, known: Mapping[str, Key]) -> str:
    if methods := [method for method in ARGUMENTS if key in own_keys(method)]:
        return f"; it belongs to method: {' and '.join(methods)}."
    if (found := near(key, [*known, *_OPTIONS])) and found[0] in _OPTIONS:
        return f"; --{found[0].replace('_', '-')} is an option of `simpo train`, and no setting of a recipe."
    return "." + (did_you_mean(key, known, 1) or " `simpo train --help` lists the keys.")


def takes_bool(key: str) -> bool:
    """Returns whether `key` takes true and false, under any method."""
    return any(key in known and takes_bool_type(known[key].hint) for known in map(keys_of, METHODS))
