"""The command line, `simpo`. Torch is imported only where a command needs it, so that `--help` answers at once."""

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from ..environment import environment
from ..errors import SimPOError
from .answers import AnnotateCommand, GenerateCommand, annotate, generate
from .compare import compare
from .iterate import IterateCommand, iterate
from .losses import losses
from .recipe import app as recipe_app
from .report import report
from .train import TrainCommand, train


class _Group(TyperGroup):
    """Prints errors that a user can correct as messages; a defect of the software keeps its traceback.

    Of several processes, those that failed because of another name that one instead.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            text = _text_to_show(error)
            if text is None:
                raise
            if text:
                console = Console(stderr=True, soft_wrap=True, highlight=False)
                console.print(f"[bold red]error:[/bold red] {escape(text)}")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Train language models with SimPO (Simple Preference Optimization, arXiv 2405.14734).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# An option's name may have underscores, as keys have. Overrides, which are no options, are passed on unchanged.
_WORDS = {"token_normalize_func": lambda name: name.replace("_", "-")}
app.command("train", cls=TrainCommand, context_settings={"ignore_unknown_options": True, **_WORDS})(train)
app.command("generate", cls=GenerateCommand, context_settings={"ignore_unknown_options": True})(generate)
app.command("annotate", cls=AnnotateCommand, context_settings={"ignore_unknown_options": True})(annotate)
app.command("iterate", cls=IterateCommand, context_settings={"ignore_unknown_options": True, **_WORDS})(iterate)
app.command("compare")(compare)
app.command("report")(report)
app.add_typer(recipe_app, name="recipe")
app.command("losses", context_settings=_WORDS)(losses)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error to correct, 2 wrong usage, 128 + N stopped by signal N."""
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
    """Declare the options that go before a command."""


def _text_to_show(error: Exception) -> str | None:
    """Returns what this process says of the error that ends it: "" for nothing, None for the traceback.

    `simpo train --launcher` shows the first cause of its processes itself, at the end.
    """
    expected = isinstance(error, SimPOError)
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return str(error) if expected else None  # one process; without loading torch
    from ..run.first_cause import named, tell_failure
    from ..run.supervision import leave_to_parent
    from ..train.processes import leave_group_as_it_is

    failure = tell_failure(error)
    supervised = leave_to_parent(failure)
    if failure.lost and failure.first:
        leave_group_as_it_is()
        return "" if supervised else named(*failure.first)
    if expected:
        return "" if supervised else str(error)
    return None
