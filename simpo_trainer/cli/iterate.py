"""`simpo iterate`: rounds of answers, scores and training."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..train.stop import StopRequest
from .answers import refuse_option_first
from .keys_help import print_settings
from .launching import Launcher, MainProcessPort, NumProcesses


class IterateCommand(TyperCommand):
    """Adds the settings to `simpo iterate --help`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from ..recipe.answer_keys import IterateSettings

        super().format_help(ctx, formatter)
        typer.echo("Settings (--name value), in a recipe under `iterate`; other names are keys of the recipe:\n")
        print_settings(IterateSettings)


def iterate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="YAML file of settings, with the sections generate and annotate.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(metavar="--NAME VALUE", help="Settings, see below.")] = None,
    launcher: Launcher = None,
    num_processes: NumProcesses = None,
    main_process_port: MainProcessPort = None,
) -> None:
    """Answer, score and train in rounds, each from the model of the last, until held-out answers get worse.

    Example: simpo iterate my_run.yaml --rounds 3

    A command that was stopped goes on where it was.
    """
    with StopRequest(at_once="Stopped. What was finished is kept: the same command goes on from there."):
        from ..recipe.answer_keys import IterateSettings, read_section, section_keys
        from ..recipe.load import check_recipe, parse_overrides
        from ..rounds.iteration import StageEnded
        from ..rounds.iteration import iterate as make_rounds
        from ..train.bars import no_bars_in_a_file

        refuse_option_first(recipe, "recipe", "RECIPE")
        texts, wrong = parse_overrides(settings or [])
        _refuse_sections(texts)
        own = section_keys(IterateSettings)
        of_recipe = [f"--{name}={text}" for name, text in texts.items() if name not in own]
        read = check_recipe(recipe, [*of_recipe, *wrong])
        mine = {name: text for name, text in texts.items() if name in own}
        given = read_section(IterateSettings, read.values.get("iterate") or {}, mine)
        launching = _launching(launcher, num_processes, main_process_port)
        try:
            with no_bars_in_a_file():
                make_rounds(read, given, launching)
        except StageEnded as end:
            raise typer.Exit(end.status) from None


def _refuse_sections(texts: Mapping[str, str]) -> None:
    """Refuse settings of other sections, of which the stages would not hear.

    Raises:
        SimPOError: there is one.
    """
    from ..errors import SimPOError
    from ..recipe.answer_keys import SECTIONS, AnnotateSettings, GenerateSettings, section_keys
    from ..recipe.keys import KEYS

    for name in texts:
        if name in SECTIONS:
            raise SimPOError(f"command line: {name} is a section of a recipe. Write it there.")
        if name in KEYS:
            continue
        for section, owner in (("generate", GenerateSettings), ("annotate", AnnotateSettings)):
            if name in section_keys(owner):
                raise SimPOError(
                    f"command line: {name} is a setting of {section}. Write it in the recipe, under {section}."
                )


def _launching(launcher: str | None, num_processes: int | None, port: int | None) -> list[str]:
    """Returns the options for `simpo train`, checked as it would check them.

    Raises:
        SimPOError: the launcher cannot be used here, or this process was itself started by one.
    """
    from ..errors import SimPOError
    from ..run.launcher import Processes, launch_words

    if "LOCAL_RANK" in os.environ:
        raise SimPOError(
            "This process was itself started by a launcher (LOCAL_RANK is set). Call `simpo iterate` alone, with "
            "--launcher for the training."
        )
    options = {"--num-processes": num_processes, "--main-process-port": port}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    if launcher is None:
        if given:
            raise typer.BadParameter(
                "Add --launcher to choose how the model is distributed: ddp, fsdp2, zero2 or zero3.",
                param_hint=", ".join(given[::2]),
            )
        return []
    launch_words(launcher, [], Processes(num_processes=num_processes, main_process_port=port))
    return ["--launcher", launcher, *given]
