"""Writes `simpo_trainer/cli/keys_help.json`, from which `simpo train --help` answers without loading torch.

Run it, or `make keys-help`, after a change of a setting's default or help, or after adding one to `keys_texts.py`. A
test fails until the file says what the classes say.
"""

import json
from enum import Enum
from typing import Any

from keys_texts import DEFAULTS, GROUPS, MEANINGS

from simpo_trainer.cli.keys_help import FILE, KeyHelp
from simpo_trainer.loss.losses import DEFAULTS as OF_LOSSES
from simpo_trainer.recipe.changed import REQUIRED, default_settings
from simpo_trainer.recipe.keys import KEYS, SIMPO_KEYS
from simpo_trainer.recipe.load import recipe_of
from simpo_trainer.train.config import SimPOConfig
from simpo_trainer.train.other_trainers import as_text


def keys_help() -> dict[str, dict[str, KeyHelp]]:
    """Returns the content of the file: for each group its keys, for each key its default and its meaning.

    Raises:
        ValueError: a key of this package is in no group, one is in two, or a text is missing or not needed.
    """
    if problems := _problems():
        raise ValueError("scripts/keys_texts.py: " + "; ".join(problems))
    used = _used()
    return {
        title: {name: KeyHelp(_default(name, used), _meaning(name)) for name in names}
        for title, names in GROUPS.items()
    }


def _problems() -> list[str]:
    grouped = [name for names in GROUPS.values() for name in names]
    own = [name for name, key in KEYS.items() if key.owner is not SimPOConfig or name in SIMPO_KEYS]
    foreign = [name for name in grouped if name in KEYS and "needed" not in KEYS[name].field.metadata]
    found = {
        "in no group": [name for name in own if name not in grouped],
        "in two groups": [name for name in grouped if grouped.count(name) > 1],
        "no key of a recipe": [name for name in grouped if name not in KEYS],
        "without a text in MEANINGS": [name for name in foreign if name not in MEANINGS],
        "in MEANINGS without need": [name for name in MEANINGS if name not in foreign],
        "in DEFAULTS without a group": [name for name in DEFAULTS if name not in grouped],
    }
    return [f"{', '.join(names)}: {problem}" for problem, names in found.items() if names]


def _used() -> dict[str, Any]:
    """Returns the values that a run uses where its recipe gives none."""
    adapter = recipe_of(REQUIRED | {"use_peft": True}, "simpo").model
    accumulation = recipe_of(REQUIRED, "simpo").training.settled().gradient_accumulation_steps
    found = {**OF_LOSSES, **vars(adapter), "gradient_accumulation_steps": accumulation, **default_settings("simpo")}
    return {name: value for name, value in found.items() if value is not None and name not in REQUIRED}


def _default(name: str, used: dict[str, Any]) -> str:
    words, value = DEFAULTS.get(name, "default: {}"), used.get(name, KEYS[name].default)
    if value is not None and "{}" not in words:
        words = "default: {}"  # words stand for a value only where there is none
    return words.format("none" if value is None else _shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else as_text(value)


def _meaning(name: str) -> str:
    return MEANINGS.get(name) or KEYS[name].field.metadata["help"]


def main() -> None:
    FILE.write_text(json.dumps(keys_help(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {FILE}.")


if __name__ == "__main__":
    main()
