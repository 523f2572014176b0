"""Text files cut into their rows as they are written, and the place where a file is broken."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import CastError

from ..errors import first_line

# What a file name may end in, and the `datasets` loader that reads it.
LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}

_BOM = b"\xef\xbb\xbf"


class TextRow(NamedTuple):
    """A row as it stands in a text file: its first line from 1, its bytes, and what is wrong with it ("" if sound)."""

    line: int
    text: bytes
    wrong: str = ""


def json_rows(lines: Iterable[bytes]) -> Iterator[TextRow]:
    """The rows of a JSON Lines file, without its empty lines."""
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(_BOM) if number == 1 else line
        if line.strip():
            yield TextRow(number, line, _wrong_json(line))


def csv_rows(lines: Iterable[bytes]) -> Iterator[TextRow]:
    """The rows of a CSV file, the header first. A row with text in quotes may have several lines."""
    start, text, width = 1, b"", 0
    for number, line in enumerate(lines, start=1):
        text += line.removeprefix(_BOM) if number == 1 else line
        if text.count(b'"') % 2:  # the quotes are open: the row goes on in the next line
            continue
        if text.strip():
            yield TextRow(start, text, _wrong_csv(text, width))
            width = width or len(_cells(text))
        start, text = number + 1, b""
    if text:
        yield TextRow(start, text, "quotes that are never closed")


def is_json_lines(head: bytes) -> bool:
    """Returns whether a JSON file that begins so has a row in each line, and is not one array or object."""
    lines = head.removeprefix(_BOM).lstrip().splitlines()
    return not head.removeprefix(_BOM).lstrip().startswith(b"[") and not all(map(_wrong_json, lines[:2]))


def broken_place(path: Path) -> str | None:
    """Names the first place where a local file is broken, and says what to change; None if none is found."""
    loader = LOADERS.get(path.suffix.lower())
    if loader == "parquet":
        return _broken_parquet(path)
    if loader is None:
        return None
    if path.suffix.lower() == ".json":  # one value, or lines like a .jsonl file
        with path.open("rb") as file:
            is_array = file.read(64).removeprefix(_BOM).lstrip().startswith(b"[")
        broken = _broken_json(path)
        if is_array or broken is None:
            return broken
    with path.open("rb") as file:
        rows = json_rows(file) if loader == "json" else csv_rows(file)
        broken_row = next((row for row in rows if row.wrong), None)
    return broken_row and f"{path}, line {broken_row.line}: {broken_row.wrong}. Repair or remove this row."


def cause_line(error: BaseException) -> str:
    """Returns the first line of the error that a loader wrapped into another one, or of the error itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error.details().splitlines()[0].rstrip(".") if isinstance(error, CastError) else first_line(error)


def first_invalid(table: pa.Table) -> int | None:
    """Returns the first row of a table with text that is not UTF-8, or otherwise invalid; None if there is none."""
    if _is_valid(table):
        return None
    start, end = 0, len(table)
    while end - start > 1:
        middle = (start + end) // 2
        start, end = (middle, end) if _is_valid(table.slice(start, middle - start)) else (start, middle)
    return start


def _is_valid(table: pa.Table) -> bool:
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _broken_parquet(path: Path) -> str | None:
    before = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            if (row := first_invalid(pa.Table.from_batches([batch]))) is not None:
                return f"{path}, row {before + row + 1}: text that is not UTF-8. Write the file again without this row."
            before += len(batch)
    except (pa.ArrowException, OSError) as error:
        where = f", behind row {before}," if before else ""
        return f"{path}{where} cannot be read as parquet: {cause_line(error)}. Repair it or write it again."
    return None


def _broken_json(path: Path) -> str | None:
    text = path.read_bytes().removeprefix(_BOM)
    try:
        json.loads(text.decode())
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        return f"{path}, line {line}: not UTF-8 text ({error.reason}). Save the file as UTF-8."
    except json.JSONDecodeError as error:
        return f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Repair or remove the row there."
    return None


def _wrong_json(line: bytes) -> str:
    try:
        row: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 text ({error.reason})"
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg})"
    return "" if isinstance(row, dict) else f"a {type(row).__name__} where a row {{...}} is needed"


def _wrong_csv(text: bytes, width: int) -> str:
    try:
        found = len(_cells(text))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text ({error.reason})"
    except csv.Error as error:
        return f"not a row of CSV ({error})"
    return f"{found} fields, and the header has {width}" if width and found > width else ""


def _cells(text: bytes) -> list[str]:
    return [cell for row in islice(csv.reader(text.decode().splitlines(keepends=True)), 1) for cell in row]
