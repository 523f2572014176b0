"""`simpo train`: one run, in this process or in processes that a launcher starts."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..train.stop import NOTHING_YET, StopRequest
from .keys_help import print_keys
from .launching import (
    Launcher,
    MachineRank,
    MainProcessIP,
    MainProcessPort,
    MaxRestarts,
    NumMachines,
    NumProcesses,
)


class TrainCommand(TyperCommand):
    """Adds the keys of a recipe to `simpo train --help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        print_keys()


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file of settings, see recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="--KEY VALUE",
            help="Replace values of the recipe: --key value, --key=value, --flag, --no-flag. Lists as in YAML.",
        ),
    ] = None,
    launcher: Launcher = None,
    num_processes: NumProcesses = None,
    num_machines: NumMachines = None,
    machine_rank: MachineRank = None,
    main_process_ip: MainProcessIP = None,
    main_process_port: MainProcessPort = None,
    max_restarts: MaxRestarts = None,
) -> None:
    """Train with the settings of RECIPE; values after it replace the recipe's.

    Example: simpo train recipes/quickstart.yaml --learning_rate 1e-6

    On several accelerators: simpo train RECIPE --launcher fsdp2 --num-processes 8
    """
    if str(recipe).startswith("-"):
        raise typer.BadParameter(f"The recipe comes first, before {recipe}.", param_hint="RECIPE")
    options = {
        "--num-processes": num_processes,
        "--num-machines": num_machines,
        "--machine-rank": machine_rank,
        "--main-process-ip": main_process_ip,
        "--main-process-port": main_process_port,
        "--max-restarts": max_restarts,
    }
    given = {option: value for option, value in options.items() if value is not None}
    if launcher is not None:
        raise typer.Exit(_launch([str(recipe), *(overrides or [])], launcher, given))
    if given:
        raise typer.BadParameter(
            "Add --launcher to choose how the model is distributed: ddp (each process has all of it), fsdp2, zero2, "
            "zero3, or fsdp2-offload and zero3-offload, which use the memory of the machine.",
            param_hint=", ".join(given),
        )
    _train(recipe, overrides or [])


def _train(recipe: Path, overrides: list[str]) -> None:
    # Entered before the imports, which take seconds: a signal would end the process without a word. run() has its own.
    with StopRequest(at_once=NOTHING_YET):
        from ..run.orphans import end_forks_with_parent, end_with_launcher
        from ..run.stop_mark import leave_stop, stop_left

        if stop_left() is not None:  # the launcher starts anew what a signal has ended
            return
        end_with_launcher()
        end_forks_with_parent()
        from ..recipe.load import load_recipe
        from ..run.one_run import Interrupted, run
        from ..run.supervision import leave_group_of_parent
        from ..train.going_on import AUTO

        leave_group_of_parent()
        loaded = load_recipe(recipe, overrides)
        if "resume_from_checkpoint" not in loaded.settings:
            loaded.training.resume_from_checkpoint = AUTO
    try:
        run(loaded)
    except Interrupted as stop:  # run() has logged the command to resume
        from accelerate import PartialState

        # A launcher ends all processes when one ends with this status, and the main process may still be saving.
        PartialState().wait_for_everyone()
        if leave_stop(stop.number):
            return
        raise typer.Exit(128 + stop.number) from None


def _launch(recipe_words: list[str], launcher: str, given: dict[str, Any]) -> int:
    """Start the same command without --launcher in new processes, and return their exit status."""
    with StopRequest(at_once=NOTHING_YET):  # as above; supervise() has its own
        from ..recipe.load import check_recipe
        from ..run.launcher import Processes, launch_words, shown, variables_of
        from ..run.machines import as_prefix
        from ..run.orphans import end_with_launcher
        from ..run.supervision import supervise

        end_with_launcher()
        check_recipe(recipe_words[0], recipe_words[1:])  # mistakes are found before any process is started
        words = launch_words(
            launcher,
            recipe_words,
            Processes(**{option.removeprefix("--").replace("-", "_"): value for option, value in given.items()}),
        )
        variables = variables_of(words)
    typer.echo(f"Launching: {as_prefix(variables)}{shown(words)}", err=True)
    options = ["--launcher", launcher, *(str(word) for pair in given.items() for word in pair)]
    return supervise(words, shlex.join(options), variables)
