"""The search of learning rate, target margin and beta, one after the other, on training prompts without pairs."""

import json
from dataclasses import dataclass
from pathlib import Path

from demo_runs import Demo


@dataclass(frozen=True)
class Setting:
    """The settings of a run that are searched."""

    learning_rate: float = 5e-6
    gamma_beta_ratio: float = 0.5
    beta: float = 2.0

    @property
    def name(self) -> str:
        """Returns a name for the folder of the run."""
        return f"lr-{self.learning_rate:g}-ratio-{self.gamma_beta_ratio:g}-beta-{self.beta:g}"

    def words(self) -> list[str]:
        """Returns the settings as overrides of a recipe."""
        return [word for name, value in vars(self).items() for word in (f"--{name}", f"{value:g}")]


@dataclass(frozen=True)
class Tried:
    """A setting, and the share of constraints that its model met on the search prompts."""

    setting: Setting
    share: float


RATES = (5e-6, 1e-5, 2e-5)
RATIOS = (1.0,)
BETAS = (5.0,)


def search(demo: Demo, small: bool = False) -> tuple[Setting, list[Tried]]:
    """Train with each rate, then with each margin at the best rate, then with each beta; keep the weights of the best.

    Returns:
        The best setting, and all that were tried.
    """
    tried = [_try(demo, Setting(learning_rate=rate)) for rate in (RATES[:2] if small else RATES)]
    if not small:
        best = _best(tried).setting
        tried += [_try(demo, Setting(best.learning_rate, ratio, best.beta)) for ratio in RATIOS]
        best = _best(tried).setting
        tried += [_try(demo, Setting(best.learning_rate, best.gamma_beta_ratio, beta)) for beta in BETAS]
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
