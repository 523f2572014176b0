"""Keys that recipes of other trainers use, and an error for each that gives the key and value to write here.

Names and units differ (a gamma copied as a ratio trains another objective), so these keys are never translated
silently. Old keys with an unchanged meaning are translated: `recipe/aged_keys.py`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..loss.losses import DEFAULTS
from ..tokens.settings import RowSettings

Explain = Callable[[Any, Mapping[str, Any]], str | None]


def as_text(value: Any) -> str:
    """Returns `value` as text for a recipe."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _renamed(name: str, note: str = "") -> Explain:
    return lambda value, recipe: f"is called {name} here. Write {name}: {as_text(value)}{note}"


def _needless(reason: str) -> Explain:
    return lambda value, recipe: f"is not needed: {reason}. Leave it out"


def _gamma(value: Any, recipe: Mapping[str, Any]) -> str:
    given = [recipe[key] for key in ("beta", "pref_beta", "rl_beta") if key in recipe]
    beta: Any
    beta, origin = (given[0], "") if given else (DEFAULTS["beta"], ", the default")
    meaning = "is the margin in units of the reward; here it is given in nats per token, gamma / beta"
    try:
        return f"{meaning}. Write gamma_beta_ratio: {float(value) / float(beta):.6g} ({value} / beta {beta}{origin})"
    except (TypeError, ValueError, ZeroDivisionError):
        return f"{meaning}. Write gamma_beta_ratio and that number"


def _completion_length(value: Any, recipe: Mapping[str, Any]) -> str:
    meaning = "is the room that max_length leaves behind the prompt here"
    total = recipe.get("max_length", RowSettings.max_length)
    prompt = recipe.get("max_prompt_length", 0)
    if not all(isinstance(number, int) for number in (value, total, prompt)):
        return f"{meaning}. Write max_length and max_prompt_length"
    if "max_prompt_length" in recipe:
        return f"{meaning}. Write max_length: {prompt + value}"
    return f"{meaning}. Write max_prompt_length: {total - value}"


def _mixture(value: Any, recipe: Mapping[str, Any]) -> str:
    return (
        "is the handbook's newer list of sources. Write them under datasets, with path for id, name for config and "
        "fraction for weight (there the share of the mixture), and test_split_size beside it"
    )


def _rl(value: Any, recipe: Mapping[str, Any]) -> str:
    if value == "dpo":
        return "is called method here. Write method: dpo"
    return "is not needed: method is simpo by default, and loss_type chooses the loss. Leave it out"


def _loss_named_simpo(value: Any, recipe: Mapping[str, Any]) -> str | None:
    return "simpo is what this trainer does. Write loss_type: sigmoid, or leave it out" if value == "simpo" else None


# For each key a function of its value and the whole recipe: the text of the error behind the key, None for no error.
OTHER_TRAINERS: dict[str, Explain] = {
    "simpo_gamma": _gamma,
    "gamma": _gamma,
    "pref_beta": _renamed("beta"),
    "rl_beta": _renamed("beta"),
    "cpo_alpha": _renamed("sft_weight", ", and sft_reduction: token for the same mean over tokens"),
    "pref_ftx": _renamed("sft_weight"),
    "pref_loss": _needless("loss_type chooses the loss, sigmoid by default"),
    "rl": _rl,
    "loss_type": _loss_named_simpo,
    "dpo_label_smoothing": _renamed("label_smoothing"),
    "max_completion_length": _completion_length,
    "max_seq_length": lambda value, recipe: (
        "is a key of SFT files. Add method: sft (--method sft), or write max_length"
    ),
    "dataset_mixture": _mixture,
}
