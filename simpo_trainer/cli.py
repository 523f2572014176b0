"""The command line, `simpo`. Torch is imported only where a command needs it, so that `--help` answers at once."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from ._version import __version__
from .errors import SimPOError

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
_TRAINING_ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"


class _Group(TyperGroup):
    """Prints what a user can put right as a message; a defect of the software keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SimPOError as error:
            console = Console(stderr=True, soft_wrap=True, highlight=False)
            console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
            raise typer.Exit(1) from None


class _Train(TyperCommand):
    """Adds to `simpo train --help` the keys of a recipe, from the classes that own them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_keys()


app = typer.Typer(
    cls=_Group,
    help="Train language models with SimPO (Simple Preference Optimization, arXiv 2405.14734).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error to put right, 2 wrong usage, 130 interrupted."""
    app(args=arguments, prog_name="simpo")


def _print_version(wanted: bool) -> None:
    if wanted:
        for name, value in environment().items():
            typer.echo(f"{name:<14}{value}")
        raise typer.Exit()


@app.callback()
def simpo(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show versions and devices, and exit."),
    ] = False,
) -> None:
    """Options that go before a command."""


@app.command(cls=_Train, context_settings={"ignore_unknown_options": True})
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file of settings, see recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="--KEY VALUE",
            help="Replace values of the recipe: --key value, --key=value, --flag, --no-flag. Lists as in YAML.",
        ),
    ] = None,
) -> None:
    """Train as RECIPE says; values after it replace the recipe's.

    Example: simpo train recipes/quickstart.yaml --learning_rate 1e-6

    On several devices: accelerate launch scripts/run_simpo.py RECIPE --KEY VALUE ...
    """
    if str(recipe).startswith("-"):
        raise typer.BadParameter(f"The recipe comes first, before {recipe}.", param_hint="RECIPE")
    from .recipe import load_recipe
    from .run import Interrupted, run

    try:
        run(load_recipe(recipe, overrides or []))
    except Interrupted:  # run() has said how to go on
        raise typer.Exit(130) from None


def environment() -> dict[str, str]:
    """Versions and devices of this machine, for a bug report: no paths, no names of users or hosts, no tokens."""
    found = {"simpo-trainer": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found | {"devices": _devices()}


def _devices() -> str:
    import torch

    if not torch.accelerator.is_available():
        return f"none; CPU with {os.cpu_count()} cores"
    kind = str(torch.accelerator.current_accelerator())
    if kind == "cuda":
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.accelerator.device_count()} x {kind}"


def _print_keys() -> None:
    from .recipe import KEYS

    console = Console(file=sys.stdout)
    console.print("Keys of a recipe, each also an override:")
    for owner in dict.fromkeys(key.owner for key in KEYS.values()):
        table = Table(title=f"\n{owner.__name__}", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in ("key", "default", "meaning"):
            table.add_column(name, no_wrap=name == "key")
        for name in owner.__annotations__:  # those of the class itself: not all of TrainingArguments
            if name in KEYS:
                field = KEYS[name].field
                table.add_row(name, escape(str(field.default)), escape(field.metadata["help"]))
        console.print(table)
    console.print(f"\nSimPOConfig also takes the fields of TrainingArguments: {_TRAINING_ARGUMENTS}", soft_wrap=True)
