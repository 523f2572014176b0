"""The rows of a file of answers, checked before anything is scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..answers.card import read_card
from ..answers.row_files import read_rows
from ..data.messages import without_filled_keys
from ..errors import SimPOError
from ..log import get_logger

logger = get_logger(__name__)

_NEEDED = ("key", "prompt", "answers")
# Columns of objects, to which a struct of Parquet gives the keys of all rows.
_OBJECTS = ("prompt", "tools", "chat_template_kwargs")


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Returns the rows that `simpo generate` has written into a file.

    Raises:
        SimPOError: there is no such file, it is of another kind, or a row is not one of answers.
    """
    rows = read_rows(path)
    if not rows:
        raise SimPOError(f"{path} has no rows. Name a file of answers that `simpo generate` has written.")
    _check_kind(path, rows)
    for number, row in enumerate(rows, start=1):
        if problem := _problem(row):
            raise SimPOError(f"{path}, row {number}: {problem}. Write the file again by `simpo generate`.")
    _check_keys(path, rows)
    if path.suffix == ".parquet":
        rows = [
            {**row, **without_filled_keys({name: row[name] for name in _OBJECTS if name in row}, None)} for row in rows
        ]
    return rows


def _check_kind(path: Path, rows: list[dict[str, Any]]) -> None:
    """Check the columns of the file.

    Raises:
        SimPOError: it is no file of answers; the message says what it is, where that can be told.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if "annotated" in (read_card(path) or {}):
        raise SimPOError(
            f"{path} was written by `simpo annotate`. Name the file of answers that it was made of, which "
            "`simpo generate` has written."
        )
    missing = [name for name in _NEEDED if name not in columns]
    if not missing:
        if "scores" in columns:
            logger.warning(f"{path} has a column 'scores' of its source; the scores of the answers take its place.")
        return
    kind = ""
    if {"chosen", "rejected"} <= set(columns):
        kind = "It holds preference pairs already, which `simpo train` takes as they are. "
    elif "responses" in columns:
        kind = "It holds ranked answers already, which `simpo train` takes as they are. "
    raise SimPOError(
        f"{path} is no file of `simpo generate`: column {' and '.join(map(repr, missing))} missing; the columns are "
        f"{', '.join(map(repr, columns))}. {kind}To annotate, name a file with {', '.join(map(repr, _NEEDED))}, which "
        "`simpo generate` writes."
    )


def _problem(row: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a row; None where nothing is."""
    if not isinstance(row.get("key"), str):
        return f"its key is {row.get('key')!r}; it must be text"
    prompt, answers = row.get("prompt"), row.get("answers")
    if not isinstance(prompt, list) or not prompt or not all(isinstance(message, dict) for message in prompt):
        return "its prompt must be a list of messages"
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        return "its answers must be a list of texts"
    return None


def _check_keys(path: Path, rows: list[dict[str, Any]]) -> None:
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if (before := first.setdefault(row["key"], number)) != number:
            raise SimPOError(
                f"{path}: rows {before} and {number} have the same key {row['key']!r}. Remove one of them; "
                "`simpo generate` writes each prompt once."
            )
