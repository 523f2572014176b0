"""`simpo generate` and `simpo annotate`: answers of the model itself, and the pairs that they make."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..train.stop import StopRequest
from .keys_help import print_settings

_STOPPED = "Stopped. What was finished is kept: the same command goes on from there."


class GenerateCommand(TyperCommand):
    """Adds the settings to `simpo generate --help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from ..recipe.answer_keys import GenerateSettings

        super().format_help(ctx, formatter)
        typer.echo("Settings (--name value), in a recipe under `generate`; other names are keys of the recipe:\n")
        print_settings(GenerateSettings)


class AnnotateCommand(TyperCommand):
    """Adds the settings to `simpo annotate --help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from ..recipe.answer_keys import AnnotateSettings

        super().format_help(ctx, formatter)
        typer.echo("Settings (--name value), in a recipe under `annotate`:\n")
        print_settings(AnnotateSettings)


_Settings = Annotated[list[str] | None, typer.Argument(metavar="--NAME VALUE", help="Settings, see below.")]


def generate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file of settings: the model, and the prompts.")],
    settings: _Settings = None,
) -> None:
    """Sample answers of the model of RECIPE to the prompts of its data, several to each.

    Example: simpo generate my_run.yaml --output answers.jsonl --num_answers 5

    A command that was stopped goes on where it was.
    """
    with StopRequest(at_once=_STOPPED):
        from ..run.orphans import end_with_launcher

        end_with_launcher()
        from ..answers.generation import generate as write_answers
        from ..recipe.answer_keys import GenerateSettings, read_section, section_keys
        from ..recipe.load import load_recipe, parse_overrides
        from ..train.bars import no_bars_in_a_file

        refuse_option_first(recipe, "recipe", "RECIPE")
        texts, wrong = parse_overrides(settings or [])
        own = section_keys(GenerateSettings)
        of_recipe = [f"--{name}={text}" for name, text in texts.items() if name not in own]
        loaded = load_recipe(recipe, [*of_recipe, *wrong])
        mine = {name: text for name, text in texts.items() if name in own}
        given = read_section(GenerateSettings, loaded.settings.get("generate") or {}, mine)
        with no_bars_in_a_file():
            write_answers(loaded, given)


def annotate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of answers, written by `simpo generate`.")],
    settings: _Settings = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Recipe whose section `annotate` is read first.")
    ] = None,
) -> None:
    """Score the answers in FILE, and write the rows to train on that the scores make.

    Example: simpo annotate answers.jsonl --score my_rules.py:score --output pairs.jsonl

    Answers are scored once: other rows to train on are made of the same scores, and a command that was stopped goes on.
    """
    with StopRequest(at_once=_STOPPED):
        from ..run.orphans import end_with_launcher

        end_with_launcher()
        from ..errors import SimPOError
        from ..recipe.answer_keys import AnnotateSettings, read_section
        from ..recipe.load import check_recipe, parse_overrides
        from ..scores.annotation import annotate as write_pairs
        from ..train.bars import no_bars_in_a_file

        refuse_option_first(str(file), "file", "FILE")
        texts, wrong = parse_overrides(settings or [])
        if wrong:
            raise SimPOError("\n".join(wrong))
        section = check_recipe(recipe).values.get("annotate") if recipe else None
        given = read_section(AnnotateSettings, section or {}, texts)
        with no_bars_in_a_file():
            write_pairs(file, given)


def refuse_option_first(word: str, what: str, metavar: str) -> None:
    if word.startswith("-"):
        raise typer.BadParameter(f"The {what} comes first, before {word}.", param_hint=metavar)
