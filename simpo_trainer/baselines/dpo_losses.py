"""The names of the losses of trl's `DPOTrainer`: translate old names, and check the settings of a recipe."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import did_you_mean

# trl's names; a test compares them with trl.
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_RENAMED = {"aot_pair": "aot"}
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def settle_losses(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Returns the values of a DPO recipe with today's names of losses, the problems with them, and the notices.

    Args:
        values: the values of the recipe's keys, already converted to their types.
    """
    given = values.get("loss_type", ["sigmoid"])
    names = [_RENAMED.get(name, name) for name in given]
    problems = [_unknown(name) for name in names if name not in DPO_LOSSES]
    notices = [
        f"loss_type {name} is called {_RENAMED[name]} by trl now, and is read as {_RENAMED[name]}."
        for name in given
        if name in _RENAMED
    ]
    if "aot" in given:
        notices.append(
            "loss_type aot is trl's paired loss; guides from before trl renamed it mean the unpaired one, which is "
            "aot_unpaired. Write aot_pair for the paired loss without this warning."
        )
    if problems:
        return dict(values), problems, notices
    found = dict(values) | ({"loss_type": names} if "loss_type" in values else {})
    return found, _number_problems(found, names), [*notices, *_hints(found, names)]


def _unknown(name: str) -> str:
    if name == "simpo":
        return "loss_type simpo is not a loss of DPO. Set method: simpo."
    meant = did_you_mean(name, [*DPO_LOSSES, *_RENAMED]) or f" It must be one of {', '.join(DPO_LOSSES)}."
    return f"loss_type {name} is not a loss of DPO.{meant}"


def _number_problems(values: Mapping[str, Any], names: list[str]) -> list[str]:
    problems = []
    beta, smoothing, weights = values.get("beta", 1), values.get("label_smoothing", 0.0), values.get("loss_weights")
    if not 0 < beta < math.inf:
        problems.append(f"beta is {beta}; it must be above 0. Set beta: 0.01, or leave it out.")
    if "exo_pair" in names and not smoothing > 0:
        problems.append("loss_type exo_pair needs a label_smoothing above 0. Set label_smoothing: 0.001, its paper's.")
    if not 0 <= smoothing < 0.5 and set(names) & set(_SMOOTHED):
        problems.append(f"label_smoothing is {smoothing}; it must lie in [0, 0.5). Set label_smoothing: 0.1.")
    divergence = values.get("f_divergence_type", DIVERGENCES[0])
    if divergence not in DIVERGENCES:
        meant = did_you_mean(divergence, DIVERGENCES)
        problems.append(
            f"f_divergence_type is {divergence}; it must be one of {', '.join(DIVERGENCES)}.{meant} Correct it, or "
            "leave it out."
        )
    if weights is not None and len(weights) != len(names):
        problems.append(f"loss_weights has {len(weights)} numbers for {len(names)} losses. Give one for each.")
    return problems


def _hints(values: Mapping[str, Any], names: list[str]) -> list[str]:
    hints = []
    if values.get("beta", 0) >= 1:
        hints.append(
            f"beta={values['beta']} is SimPO-sized. DPO sums log-probabilities over an answer and uses 0.01 to 0.5."
        )
    if values.get("label_smoothing") and not set(names) & set(_SMOOTHED):
        hints.append(
            f"label_smoothing has no effect on {' and '.join(names)} in trl; it belongs to {', '.join(_SMOOTHED)}."
        )
    return hints
