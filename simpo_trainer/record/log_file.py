"""`log.jsonl`: every entry of a run's log as it comes, so that a run that was killed still has its curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOG_FILE = "log.jsonl"


def begin_log(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the file anew, with the entries that a run goes on behind."""
    file = folder / LOG_FILE
    scratch = file.with_suffix(".tmp")
    scratch.write_text("".join(map(_line, entries)), encoding="utf-8")
    scratch.replace(file)


def add_to_log(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as stream:
        stream.write(_line(entry))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the entries; none without the file. A line that a kill has cut is left out."""
    file = folder / LOG_FILE
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
