"""Train the quickstart's model once with each of several losses, and compare the runs.

This module does not load torch: the measured peak memory of a process includes that of the process that started it.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import SimPOError
from ..results.command import compare

LOSSES = ("sigmoid", "hinge", "ipo", "simper", "orpo", "dpo")
RECIPE = "quickstart"  # a name, not a path, so that any current folder works
# Often enough for a curve; the untrained model is evaluated too, so that all curves begin at the same point.
EVALUATIONS = ("--eval_on_start=true", "--eval_strategy=steps", "--eval_steps=21")


def train_and_compare(folder: Path, names: Sequence[str], console: Console, recipe: str = RECIPE) -> None:
    """Train `folder/losses/NAME` for each name, print their table, and write it and a picture into `folder/losses`.

    Args:
        folder: the folder of the quickstart, with `model/` and `data/`.
        names: values of `loss_type`, or "dpo" for the method.
        console: the console to print on.
        recipe: the recipe of all runs.

    Raises:
        SimPOError: `folder` is not prepared, or a training failed.
    """
    if not (folder / "model" / "config.json").is_file():
        raise SimPOError(
            f"{folder} has no model/; the runs need what prepare writes. Run `python scripts/quickstart.py prepare "
            f"--folder {folder}`."
        )
    runs = [folder / "losses" / name for name in names]
    for name, run in zip(names, runs, strict=True):
        console.print(f"Training with {name} into {run}")
        if status := subprocess.run(training_command(recipe, folder, name, run)).returncode:
            raise SimPOError(
                f"The training with {name} ended with status {status}; its message is above. Correct the error, or "
                f"leave {name} out."
            )
    compare(runs, folder / "losses", console)


def training_command(recipe: str, folder: Path, name: str, run: Path) -> list[str]:
    """Returns the command that trains with one loss, with the loss's defaults instead of the recipe's settings."""
    loss = ["--method=dpo"] if name == "dpo" else [f"--loss_type={name}", "--beta=null", "--gamma_beta_ratio=null"]
    places = {"model_name_or_path": folder / "model", "dataset_name": folder / "data", "output_dir": run}
    given = [f"--{key}={place}" for key, place in places.items()]
    return [sys.executable, "-m", "simpo_trainer", "train", recipe, *loss, *given, *EVALUATIONS]
