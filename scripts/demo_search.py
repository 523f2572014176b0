"""The search of learning rate, target margin, beta and epochs, on training prompts without pairs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo_runs import Demo


@dataclass(frozen=True)
class Setting:
    """The settings of a run that are searched."""

    learning_rate: float = 5e-6
    gamma_beta_ratio: float = 0.5
    beta: float = 2.0
    num_train_epochs: int = 1

    @property
    def name(self) -> str:
        """Returns a name for the folder of the run."""
        numbers = f"lr-{self.learning_rate:g}-ratio-{self.gamma_beta_ratio:g}-beta-{self.beta:g}"
        return f"{numbers}-epochs-{self.num_train_epochs}"

    def words(self) -> list[str]:
        """Returns the settings as overrides of a recipe."""
        return [word for name, value in vars(self).items() for word in (f"--{name}", f"{value:g}")]


@dataclass(frozen=True)
class Tried:
    """A setting, and the share of constraints that its model met on the search prompts."""

    setting: Setting
    share: float


# The search of the rate begins here, for every method, and doubles or halves it.
FIRST_RATE = 2e-5
# Then another value of each of these, with the best of the others.
OTHERS: dict[str, Any] = {"gamma_beta_ratio": 1.0, "beta": 5.0, "num_train_epochs": 2}


def climb(share_at: Callable[[float], float], start: float = FIRST_RATE) -> dict[float, float]:
    """Double a rate while that does better; if it never does, halve it while that does.

    Args:
        share_at: trains with a rate, and returns the share of constraints met.
        start: the first rate.

    Returns:
        The share at each rate that was tried. The best one has a worse neighbour on each side.
    """
    shares = {start: share_at(start)}
    for factor in (2, 0.5):
        rate = start * factor
        while rate not in shares:
            best = max(shares.values())
            shares[rate] = share_at(rate)
            if shares[rate] > best:
                rate *= factor
        if max(shares, key=lambda each: shares[each]) != start:
            break
    return shares


def search(demo: Demo, small: bool = False) -> tuple[Setting, list[Tried]]:
    """Search the rate, then try another value of each other setting; keep the weights of the best.

    Args:
        demo: the folder with the pairs.
        small: try two rates, and nothing else.

    Returns:
        The best setting, and all that were tried.
    """
    tried: list[Tried] = []

    def share_at(rate: float) -> float:
        tried.append(_try(demo, Setting(learning_rate=rate)))
        return tried[-1].share

    if small:
        share_at(FIRST_RATE / 2)
        share_at(FIRST_RATE)
    else:
        climb(share_at)
        for name, value in OTHERS.items():
            tried.append(_try(demo, replace(_best(tried).setting, **{name: value})))
    best = _best(tried).setting
    for each in tried:
        if each.setting != best:
            demo.drop_weights(run_folder(demo, each.setting))
    return best, tried


def run_folder(demo: Demo, setting: Setting) -> Path:
    """Returns the folder of the run with a setting."""
    return demo.folder / "search" / setting.name


def _best(tried: list[Tried]) -> Tried:
    return max(tried, key=lambda each: each.share)  # the first of equals


def _try(demo: Demo, setting: Setting) -> Tried:
    result = demo.folder / "search" / f"{setting.name}.json"
    if result.exists():
        return Tried(setting, json.loads(result.read_text(encoding="utf-8"))["share"])
    run = demo.train(f"search/{setting.name}", setting.words())
    share = demo.greedy(run, "search", f"search/{setting.name}").share
    result.write_text(json.dumps({"share": share}), encoding="utf-8")
    return Tried(setting, share)
