"""The seal of a checkpoint: the last file that is written. A checkpoint counts if each file is as the seal says.

While a checkpoint is written or removed, its seal is open, so that nothing goes on from a half of it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

SEAL = "seal.json"
_OWN_HASH = "hash_of_this_seal"
_VERSION = 1
# Files are read by as many threads, in pieces of as many bytes.
_THREADS, _PIECE = 4, 1 << 24


def begin_checkpoint(folder: Path) -> None:
    """Make the folder of a checkpoint, empty but for an open seal; what a killed run left there is removed."""
    remove_checkpoint(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SEAL, {"version": _VERSION, "open": True})


def seal_checkpoint(folder: Path, facts: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Write the seal of a checkpoint, or of a finished run, whose files are all written.

    Args:
        folder: the checkpoint or the run.
        facts: what else the seal shall hold, as JSON.
        names: the files that it is about; None for all in the folder.
    """
    names = sorted(_files(folder)) if names is None else names
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(_hash, (folder / name for name in names)))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "xxh3_128": found}
        for name, found in zip(names, hashes, strict=True)
    }
    sealed = {"version": _VERSION, "open": False, "sealed": datetime.now(UTC).isoformat(timespec="seconds")}
    content = {**sealed, **facts, "files": files}
    _write(folder / SEAL, {**content, _OWN_HASH: _hash_of(content)})


def remove_checkpoint(folder: Path) -> None:
    """Remove a folder such that a kill in the middle leaves nothing that counts: its seal is opened, and goes last."""
    if not folder.is_dir():
        return
    if not is_open(folder):
        _open(folder / SEAL)
    for path in folder.iterdir():
        if path.name == SEAL:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (folder / SEAL).unlink(missing_ok=True)
    folder.rmdir()


def read_seal(folder: Path) -> Mapping[str, Any] | None:
    """Returns the seal of a checkpoint, an open one if it cannot be read; None where there is no such file."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {"open": True}
    if not isinstance(seal, dict) or not isinstance(seal.get("files", {}), dict):
        return {"open": True}
    # Those of earlier versions have no hash of themselves.
    own = seal.pop(_OWN_HASH, None)
    return seal if own is None or own == _hash_of(seal) else {"open": True}


def is_open(folder: Path) -> bool:
    """Returns whether a checkpoint was not written, or not removed, to the end."""
    seal = read_seal(folder)
    return seal is not None and bool(seal.get("open", True))


def broken_files(folder: Path) -> list[str]:
    """Returns a text for each file that is not as the seal says; none for a checkpoint without a seal.

    Sizes are compared first: a file is read only where all sizes are right.
    """
    seal = read_seal(folder)
    if seal is None:
        return []
    if seal.get("open", True):
        return [f"{SEAL} is open: it was not written to the end"]
    files: Mapping[str, Mapping[str, Any]] = seal["files"]
    there = set(_files(folder))
    missing = [f"{name} is missing" for name in sorted(files.keys() - there)]
    sizes = {name: (folder / name).stat().st_size for name in sorted(files.keys() & there)}
    wrong = [
        f"{name} has {size:,} bytes, not {files[name]['bytes']:,}"
        for name, size in sizes.items()
        if size != files[name]["bytes"]
    ]
    if missing or wrong:
        return [*missing, *wrong]
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = threads.map(_hash, (folder / name for name in sizes))
        return [
            f"{name} was changed (its hash is another)"
            for name, found in zip(sizes, hashes, strict=True)
            if found != files[name]["xxh3_128"]
        ]


def _files(folder: Path) -> Iterator[str]:
    """Returns the names of the files in a checkpoint, its seal aside, with "/" between folders."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (SEAL, SEAL + _NEW):
            yield name


def _hash_of(content: Mapping[str, Any]) -> str:
    """Returns the hash of a seal itself: one that was changed must not tell of another run."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _hash(path: Path) -> str:
    found = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _open(path: Path) -> None:
    """Open the seal of a checkpoint that is about to go, also on a full disk: an empty file needs no room there.

    It is read as open. Removing the seal would not do: a checkpoint without one counts, as those of earlier versions.
    """
    try:
        _write(path, {"version": _VERSION, "open": True})
    except OSError:
        with path.open("w", encoding="utf-8") as file:
            os.fsync(file.fileno())


_NEW = ".new"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON such that the file is the old one or the new one at any time, also after a crash of the machine."""
    new = path.with_name(path.name + _NEW)
    with new.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    if hasattr(os, "O_DIRECTORY"):  # a folder cannot be opened on Windows
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
