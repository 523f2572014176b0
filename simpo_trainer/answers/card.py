"""The data card of a file of rows: how they were made, as facts for programs and as tables for people, in one file.

`answers.jsonl` has the card `answers.card.md`. Its facts stand in front as YAML, as in the cards of the Hub.
"""

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import SimPOError
from ..record.privacy import public_settings
from .journal import identity_differences
from .row_files import write_text

_TITLES = {"generated": "Answers", "annotated": "Scores", "selected": "Rows to train on"}
_FENCE = "---\n"


def card_path(file: Path) -> Path:
    """Returns the path of a file's card."""
    return file.with_suffix(".card.md")


def write_card(file: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the card of a file, without a path, a key or a token of this machine.

    Args:
        file: the file of rows.
        sections: by `generated`, `annotated` and `selected`: facts by name; a mapping inside becomes rows of its own.
    """
    public = public_settings(sections)
    facts = yaml.safe_dump(public, sort_keys=False, allow_unicode=True, width=100)
    parts = [f"{_FENCE}{facts}{_FENCE}", f"# {_text(file.name)}\n"]
    for name, section in public.items():
        lines = [f"| {_text(key)} | {_text(value)} |" for key, value in _flat(section)]
        parts.append("\n".join([f"## {_TITLES.get(name, name)}\n", "| | |", "|---|---|", *lines, ""]))
    write_text(card_path(file), "\n".join(parts))


def read_card(file: Path) -> dict[str, Any] | None:
    """Returns the sections of a file's card; None without a card.

    Raises:
        SimPOError: the card cannot be read.
    """
    path = card_path(file)
    if not path.is_file():
        return None
    try:
        facts, _ = path.read_text(encoding="utf-8").removeprefix(_FENCE).split(f"\n{_FENCE}", 1)
        found = yaml.safe_load(facts)
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise SimPOError(f"The data card {path} cannot be read ({error}). Remove it, or write it again.") from None
    return found if isinstance(found, dict) else None


def check_same(file: Path, section: str, identity: Mapping[str, Any]) -> None:
    """Check that a file that is there was made as it would be made now.

    Args:
        file: the file of rows.
        section: of its card.
        identity: what decides the rows now, by name; the card has it as `identity`.

    Raises:
        SimPOError: it was not, or its card does not tell.
    """
    found = ((read_card(file) or {}).get(section) or {}).get("identity")
    if found is None:
        raise SimPOError(
            f"{file} is there already, and no data card beside it tells how it was made. Give another output, or move "
            "the file away."
        )
    if differences := identity_differences(found, json.loads(json.dumps(public_settings(identity)))):
        raise SimPOError(
            f"{file} is there already and was made with other settings: {'; '.join(differences)}. Give another output, "
            "or move the file away."
        )


def _flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({f"{name} {number}": item for number, item in enumerate(value, start=1)})
        else:
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    """Returns a value as text of a table's cell, in which nothing is markup."""
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    plain = " ".join(html.escape(shown, quote=False).split())
    for sign in "\\`*_[]|#":
        plain = plain.replace(sign, "\\" + sign)
    return plain
