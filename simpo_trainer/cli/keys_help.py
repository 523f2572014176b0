"""The keys of a recipe in `simpo train --help`, from a file that `make keys-help` writes: the classes need torch."""

import json
import shutil
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import typer

FILE = Path(__file__).with_name("keys_help.json")

_TRAINING_ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
# Lines longer than this are hard to read.
_WIDEST = 120


class KeyHelp(NamedTuple):
    """The help of a key: `default` in words that begin with "default" or "required", and its meaning."""

    default: str
    meaning: str


def read_keys_help() -> dict[str, dict[str, KeyHelp]]:
    """Returns the keys of a recipe under the titles of their groups."""
    groups = json.loads(FILE.read_text(encoding="utf-8"))
    return {title: {name: KeyHelp(*words) for name, words in keys.items()} for title, keys in groups.items()}


def print_settings(settings: type) -> None:
    """Print the settings of a verb, each a field with its help."""
    for each in fields(settings):
        default = "unset" if each.default is None else f"default {each.default}"
        _print_key(each.name, KeyHelp(default, each.metadata["help"]))


def print_keys() -> None:
    """Print the keys by purpose, as wide as the terminal."""
    typer.echo("Keys of a recipe, each also an override (--key value):")
    for title, keys in read_keys_help().items():
        typer.secho(f"\n{title}", bold=True)
        for name, words in keys.items():
            _print_key(name, words)
    typer.echo("\nmethod: dpo and method: sft read keys of trl too:\n  simpo recipe show RECIPE --method dpo")
    typer.echo(f"\nA recipe also takes the other fields of TrainingArguments:\n  {_TRAINING_ARGUMENTS}")


def _print_key(name: str, words: KeyHelp) -> None:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    typer.echo(_wrapped(f"{name}  [{words.default}]", width, "  "))
    typer.echo(_wrapped(words.meaning, width, "      "))


def _wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
    )
