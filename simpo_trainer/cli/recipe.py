"""`simpo recipe`: list the recipes that come with the package, and show all settings of a recipe."""

import json
from typing import Annotated, Any

import typer
import yaml

from ..recipe.file import merge_layers, read_layers
from ..recipe.paths import recipe_files

app = typer.Typer(no_args_is_help=True, help="List the recipes of the package, and show the settings of a recipe.")

_COLUMNS = {
    "method": "method",
    "beta": "beta",
    "gamma_beta_ratio": "ratio",
    "learning_rate": "lr",
    "sft_weight": "sft",
    "global_batch_size": "batch",
    "model_name_or_path": "model",
}


@app.command("list")
def list_recipes() -> None:
    """Show the recipes that come with the package, with the settings in which they differ."""
    rows = [["recipe", *_COLUMNS.values()]]
    for name, path in recipe_files().items():
        entries = merge_layers(read_layers(path))
        values = {"method": "simpo"} | {key: entry.value for key, entry in entries.items()}
        rows.append([name, *(_cell(values[key]) if key in values else "" for key in _COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo("\nratio: gamma_beta_ratio, sft: sft_weight, batch: pairs of one step. An empty cell means the default.")
    typer.echo("simpo recipe show RECIPE shows all of one, simpo train RECIPE runs it.")


@app.command("show", context_settings={"ignore_unknown_options": True})
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="File, or name from `simpo recipe list`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="--KEY VALUE", help="Replace values, as in `simpo train`.")
    ] = None,
    origins: Annotated[bool, typer.Option("--origins", help="Write the origin of each value behind it.")] = False,
    only_changed: Annotated[
        bool, typer.Option("--changed", help="Leave out settings that have their default value.")
    ] = False,
) -> None:
    """Print all settings of a run of RECIPE, defaults included, as YAML that is a recipe itself.

    Settings that the machine decides are left out, and accumulation where it follows from global_batch_size.
    """
    from ..log import get_logger
    from ..recipe.changed import changed
    from ..recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    for notice in loaded.notices:
        get_logger(__name__).info(notice)
    settings = changed(loaded) if only_changed else loaded.resolved()
    not_given = "follows from other settings" if only_changed else "default"
    for title, names in _sections(list(settings), loaded.method):
        typer.echo(f"# {title}")
        for name in names:
            origin = f"  # {loaded.origins.get(name, not_given)}" if origins else ""
            typer.echo(_line(name, settings[name]) + origin)


def _sections(names: list[str], method: str) -> list[tuple[str, list[str]]]:
    """Returns the keys under headings: method, model, data, the method's own settings, training, answers."""
    from ..baselines.settings import MethodConfig
    from ..data.settings import DataConfig
    from ..recipe.answer_keys import AnswerKeys
    from ..recipe.keys import SIMPO_KEYS, keys_of
    from ..recipe.model_keys import ModelKeys
    from ..record.methods import METHODS
    from ..train.config import SimPOConfig

    def section(name: str) -> str:
        owner = keys[name].owner
        if owner is MethodConfig:
            return "Method"
        if owner is DataConfig:
            return "Data"
        if owner is ModelKeys:
            return "Model"
        if owner is AnswerKeys:
            return "Answers"
        return own if owner is not SimPOConfig or name in SIMPO_KEYS else "Training"

    keys, own = keys_of(method), METHODS[method].title
    found: dict[str, list[str]] = {"Method": [], "Model": [], "Data": [], own: [], "Training": [], "Answers": []}
    for name in names:
        found[section(name)].append(name)
    found[own].sort(key=lambda name: SIMPO_KEYS.index(name) if name in SIMPO_KEYS else -1)
    return [(title, keys_there) for title, keys_there in found.items() if keys_there]


def _line(name: str, value: Any) -> str:
    """Returns `name: value` as one line of YAML."""
    if isinstance(value, str) and "\n" in value:  # a template; a JSON text is valid YAML, with escapes for line breaks
        return f"{name}: {json.dumps(value, ensure_ascii=False)}"
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=float("inf"))
    return f"{name}: {text.strip()[1:-1]}"


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).rpartition("/")[2]
