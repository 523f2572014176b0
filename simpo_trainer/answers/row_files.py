"""Files of rows: JSON Lines or Parquet, by the ending of the name, written whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SimPOError
from ..log import get_logger
from .journal import no_room

logger = get_logger(__name__)

ENDINGS = (".jsonl", ".parquet")


def check_ending(path: Path, key: str = "output") -> None:
    """Check the ending of a file's name.

    Raises:
        SimPOError: it is none of `ENDINGS`; `key` is the setting that names the file.
    """
    if path.suffix not in ENDINGS:
        raise SimPOError(f"{key} is {str(path)!r}; it must end in {' or '.join(ENDINGS)}. Rename it.")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of rows; equal rows give equal bytes, and the file is there whole or not at all.

    Raises:
        SimPOError: the disk is full, or Parquet cannot hold a column because its values differ in type.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        if path.suffix == ".parquet":
            _write_parquet(new, rows, path)
        else:
            with new.open("w", encoding="utf-8") as file:
                file.writelines(_line(row) for row in rows)
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise no_room(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        SimPOError: the disk is full.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise no_room(path, error) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file that :func:`write_rows` has written.

    Raises:
        SimPOError: there is no such file, or it is broken.
    """
    check_ending(path, "The file of answers")
    if not path.is_file():
        raise SimPOError(f"{path} does not exist. Name the file that `simpo generate` has written.")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pylist()
        with path.open(encoding="utf-8") as lines:
            return [_parsed(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise SimPOError(f"{path} cannot be read: {error}. Write it again.") from error


def check_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check, before the work, that a Parquet file can hold columns of these rows; other files hold any.

    Raises:
        SimPOError: a column's values differ in type.
    """
    if path.suffix == ".parquet":
        _table(rows, path)


def _line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False) + "\n"
    # Half a surrogate pair, which a row may hold, cannot be written as UTF-8.
    return line if line.isascii() or _is_utf8(line) else json.dumps(row) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_parquet(new: Path, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with new.open("wb") as file:
        pq.write_table(_table(rows, path), file)
        file.flush()
        os.fsync(file.fileno())


def _table(rows: Sequence[Mapping[str, Any]], path: Path) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)  # pyarrow looks at those of the first row alone
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise SimPOError(
            f"{path}: Parquet cannot hold a column of these rows ({error}). Give an output that ends in .jsonl."
        ) from error


def _parsed(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SimPOError(f"{path}, line {number}: not valid JSON: {error}. Write the file again.") from None
    if not isinstance(row, dict):
        raise SimPOError(f"{path}, line {number}: a {type(row).__name__}; each line must be an object with its row.")
    return row
