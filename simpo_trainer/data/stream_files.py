"""The fingerprint of a stream: that of the files it is read from, as its rows are known only while it is read."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from datasets import IterableDataset

# Where the fingerprint stands in the info of a stream, which all that is made of the stream has too.
_KEY = "rows of the stream"
# A file is hashed whole up to this many pieces, and beyond in as many at even distances.
_PIECES, _PIECE = 256, 1 << 20


def note_files(stream: Any, files: Iterable[str], origins: Iterable[Any]) -> None:
    """Note in the info of a stream which files it is read from.

    Args:
        files: paths or addresses.
        origins: what `datasets` knows of each: for one of the Hub the repository and its commit.
    """
    stream.info.download_checksums = {
        f"{number} {Path(file).name}": {"num_bytes": None, "checksum": _of_file(file, origin)}
        for number, (file, origin) in enumerate(zip(files, origins, strict=True))
    }


def note_rows(stream: IterableDataset, parts: Iterable[tuple[IterableDataset, Any]], settings: Any) -> None:
    """Note in the info of a stream the fingerprint of its rows.

    Args:
        parts: the streams that it was made of, in their order, with what is taken of each.
        settings: all else that decides which rows it has.
    """
    found = [[files, taken] for part, taken in parts if (files := part.info.download_checksums)]
    text = json.dumps([found, settings], sort_keys=True, default=str)
    stream.info.download_checksums = {_KEY: {"num_bytes": None, "checksum": xxhash.xxh3_128_hexdigest(text.encode())}}


def stream_fingerprint(stream: Any) -> str | None:
    """Returns the fingerprint that :func:`note_rows` noted; None without one."""
    noted = getattr(getattr(stream, "info", None), "download_checksums", None) or {}
    return noted.get(_KEY, {}).get("checksum")


def _of_file(file: str, origin: Any) -> str:
    if not os.path.isfile(file):
        return str(origin)
    size = os.path.getsize(file)
    found = xxhash.xxh3_128(str(size).encode())
    pieces = min(_PIECES, -(-size // _PIECE))
    with open(file, "rb") as opened:
        for number in range(pieces):
            opened.seek(number * _PIECE if size <= _PIECES * _PIECE else number * (size - _PIECE) // (_PIECES - 1))
            found.update(opened.read(_PIECE))
    return found.hexdigest()
