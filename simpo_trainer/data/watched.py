"""The files of a source while a loader reads them: what is broken is named or left out, and none changes unseen.

The loaders of `datasets` say nothing of the row at which they fail. Here they get one file at a time and, where broken
rows are to be left out, the sound rows of a piece of it.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from datasets.utils.file_utils import xopen

from ..errors import SimPOError
from ..log import get_logger
from .text_rows import TextRow, broken_place, cause_line, csv_rows, first_invalid, is_json_lines, json_rows

logger = get_logger(__name__)

BadRow: TypeAlias = Literal["drop", "error"]

# Bytes of a text file that are given to its loader at once.
_PIECE = 10 << 20
# Rows of a file after which one that is broken for the most part is given up.
_TRIAL = 1000
# All that a loader may stumble over in a file.
UNREADABLE = (ValueError, TypeError, OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass
class LeftOut:
    """Rows of a file that were left out as broken: how many of those that were read, and the first."""

    file: str
    unit: str  # of the places: "line" or "row"
    read: int = 0
    count: int = 0
    first: str = ""
    first_is_type: bool = False  # a row that is sound alone, and of other types than the first rows of the file

    def add(self, place: int, wrong: str, *, is_type: bool = False) -> None:
        """Leave out the row at a place.

        Raises:
            SimPOError: more than half of the rows are broken.
        """
        self.count += 1
        if not self.first:
            self.first, self.first_is_type = f"{self.unit} {place}: {wrong}", is_type
        if self.read >= _TRIAL:
            self.check_enough()

    def check_enough(self) -> None:
        """Refuse a file of which most rows are broken.

        Raises:
            SimPOError: with the first of them.
        """
        if 2 * self.count > self.read:
            raise SimPOError(
                f"{self.file}: {self.count} of {self.read} rows cannot be read; at most half may be left out. The "
                f"first is {self.first}. Write the file again."
            )

    def said(self) -> str:
        """Returns the line of the log."""
        return f"{self.file}: left out {self.count} of {self.read} rows that cannot be read; the first is {self.first}"


@dataclass
class WatchedFiles:
    """A loader's step from files to tables, put in its place: called with its arguments, it yields its tables.

    Args:
        read: the step itself, a generator.
        stamps: sizes and times of change of the local files as they were at the start.
        is_stream: whether rows are read while training; their types are then those of the first.
        on_bad_row: "drop" leaves out what cannot be read; otherwise it is an error.
    """

    read: Callable[..., Iterator[tuple[Any, pa.Table]]]
    stamps: dict[str, tuple[int, int]]
    is_stream: bool
    on_bad_row: BadRow | None
    told: dict[str, str] = field(default_factory=dict)  # what was left out of each file, said once

    def __call__(self, **given: Any) -> Iterator[tuple[Any, pa.Table]]:
        for place, file in enumerate(given.get("base_files") or given["files"]):
            one = {key: value[place : place + 1] if isinstance(value, list) else value for key, value in given.items()}
            for number, (_, table) in enumerate(self._of_file(str(file), one)):
                yield (place, number), table

    def _of_file(self, file: str, one: dict[str, Any]) -> Iterator[tuple[Any, pa.Table]]:
        self._check_unchanged(file)
        if self.on_bad_row == "drop":
            left_out = self._new_tally(one, file)
            yield from self._sound_tables(one, left_out)
            left_out.check_enough()
            if left_out.count and self.told.get(file) != left_out.said():
                self.told[file] = left_out.said()
                logger.warning(self.told[file])
        else:
            yield from self._whole_tables(file, one)
        self._check_unchanged(file)

    def _check_unchanged(self, file: str) -> None:
        if file not in self.stamps:
            return
        with suppress(FileNotFoundError):
            if stamp(file) == self.stamps[file]:
                return
            raise SimPOError(
                f"{file} was changed while the run reads it (it had {self.stamps[file][0]} bytes and has "
                f"{os.stat(file).st_size}). A stream must stay as it is until the run ends: put the file back and go "
                "on from the last checkpoint, or start anew."
            )
        raise SimPOError(
            f"{file} is gone, and the run still reads it. A stream must stay where it is until the run ends: put the "
            "file back and go on from the last checkpoint."
        )

    def _whole_tables(self, file: str, one: dict[str, Any]) -> Iterator[tuple[Any, pa.Table]]:
        before = 0
        try:
            for key, table in self.read(**one):
                if (row := first_invalid(table)) is not None:
                    raise ValueError(f"text that is not UTF-8 in row {before + row + 1}")
                yield key, table
                before += len(table)
        except UNREADABLE as error:
            self._check_unchanged(file)
            if not self.is_stream or isinstance(error, SimPOError):
                raise
            raise SimPOError(self._place_of(error, file, one, before)) from error

    def _place_of(self, error: BaseException, file: str, one: dict[str, Any], before: int) -> str:
        """The message for a file that cannot be read; it is read again only now, to find the place."""
        path = Path(file)
        if path.is_file() and (broken := broken_place(path)):
            return broken
        left_out = self._new_tally(one, file)
        with suppress(*UNREADABLE):
            next((True for _ in self._sound_tables(one, left_out) if left_out.count), None)
        where = left_out.first or f"behind row {before}: {cause_line(error)}"
        if left_out.first_is_type or (not left_out.first and isinstance(error, ValueError | TypeError)):
            return (
                f"{file}, {where}. The types of a stream are those of the first rows of its files. Remove streaming, "
                "which looks at whole files; or write the row like those before it, with the keys of the first one."
            )
        return f"{file}, {where}. Repair it or write it again."

    # --- Sound rows alone -------------------------------------------------------------------------------------------

    def _new_tally(self, one: dict[str, Any], file: str) -> LeftOut:
        return LeftOut(file, "line" if self._cut(one) else "row")

    def _cut(self, one: dict[str, Any]) -> Callable[[Any], Iterator[TextRow]] | None:
        """Returns the function that cuts the file into rows of text; None if it has no such rows."""
        if "files" in one:  # Parquet
            return None
        if "original_files" not in one:
            return csv_rows
        with xopen(_opened(one), "rb") as file:
            return json_rows if is_json_lines(file.read(_PIECE)) else None

    def _sound_tables(self, one: dict[str, Any], left_out: LeftOut) -> Iterator[tuple[Any, pa.Table]]:
        cut = self._cut(one)
        if cut is None:
            yield from self._sound_rows(one, left_out)
            return
        with xopen(_opened(one), "rb") as file:
            rows = cut(file)
            header = b"" if cut is json_rows else next(rows, TextRow(1, b"")).text
            while piece := list(islice(rows, 1)):
                size = len(piece[0].text)
                for row in rows:
                    piece.append(row)
                    size += len(row.text)
                    if size >= _PIECE:
                        break
                sound = []
                for row in piece:
                    left_out.read += 1
                    if row.wrong:
                        left_out.add(row.line, row.wrong)
                    else:
                        sound.append(row)
                yield from self._of_piece(one, header, sound, left_out)

    def _of_piece(
        self, one: dict[str, Any], header: bytes, rows: list[TextRow], left_out: LeftOut
    ) -> Iterator[tuple[Any, pa.Table]]:
        """The tables of some rows; of a stream without those that the loader refuses, found by halves."""
        if not rows:
            return
        try:
            tables = list(self._from_copy(one, header, rows))
        except UNREADABLE as error:
            if not self.is_stream:  # where types widen until they hold all values
                raise
            if len(rows) == 1:
                left_out.add(rows[0].line, cause_line(error), is_type=True)
                return
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                yield from self._of_piece(one, header, half, left_out)
            return
        yield from tables

    def _from_copy(self, one: dict[str, Any], header: bytes, rows: list[TextRow]) -> Iterator[tuple[Any, pa.Table]]:
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "rows")
            with open(copy, "wb") as file:
                file.write(header)
                file.writelines(row.text if row.text.endswith(b"\n") else row.text + b"\n" for row in rows)
            yield from self.read(**one | {"files_iterables": [[copy]]})

    def _sound_rows(self, one: dict[str, Any], left_out: LeftOut) -> Iterator[tuple[Any, pa.Table]]:
        """The tables of a file that has no rows of text, without rows whose text is not UTF-8."""
        try:
            for key, table in self.read(**one):
                while (bad := first_invalid(table)) is not None:
                    if bad:
                        yield key, table.slice(0, bad)
                    left_out.read += bad + 1
                    left_out.add(left_out.read, "text that is not UTF-8")
                    table = table.slice(bad + 1)
                left_out.read += len(table)
                yield key, table
        except UNREADABLE as error:
            if isinstance(error, SimPOError):
                raise
            path = Path(left_out.file)
            broken = broken_place(path) if path.is_file() else None
            place = broken or f"{path}, behind row {left_out.read}: {cause_line(error)}."
            raise SimPOError(
                f"{place} on_bad_row: drop cannot leave out a row here, as the file is not in rows of text: write it "
                "as JSON Lines."
            ) from error


def _opened(one: dict[str, Any]) -> str:
    """Returns the address under which the one file is opened, as of what a packed file holds."""
    return str(next(iter(one["files_iterables"][0])))


def stamp(file: str) -> tuple[int, int]:
    """Returns size and time of change of a file."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def watch(builder: Any, *, is_stream: bool, on_bad_row: BadRow | None) -> None:
    """Put :class:`WatchedFiles` into a builder of `datasets` that makes tables of files."""
    files = [str(file) for split in (builder.config.data_files or {}).values() for file in split]
    stamps = {file: stamp(file) for file in files if os.path.isfile(file)}
    builder._generate_tables = WatchedFiles(builder._generate_tables, stamps, is_stream, on_bad_row)


def prepare_without_bad_rows(builder: Any) -> None:
    """Have a watched builder write its tables, and say what was left out, also where an earlier run wrote them."""
    told = Path(builder.cache_dir) / "left_out.json"
    is_new = not Path(builder.cache_dir).exists()
    builder.download_and_prepare()
    if is_new:
        told.write_text(json.dumps(list(builder._generate_tables.told.values())))
    elif told.is_file():
        for line in json.loads(told.read_text()):
            logger.warning(line)
