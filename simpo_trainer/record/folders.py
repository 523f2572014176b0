"""Recognise the folders of runs and name each, and find the checkpoints in the folder of a run."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SimPOError, near
from .seal import is_open, read_seal

MANIFEST = "run_manifest.json"
CURVES = "training_curves.png"
REPORT = "report.html"
# The state of a trainer with its log. It is written last: in a checkpoint after all other files, in a run at its end.
STATE = "trainer_state.json"
_SHOWN = 8


def checkpoints(folder: Path) -> list[Path]:
    """Returns the completely saved checkpoints of a run, oldest first."""
    return sorted((found for found in folder.glob("checkpoint-*") if is_checkpoint(found)), key=step_of)


def is_checkpoint(folder: Path) -> bool:
    """Returns whether a folder is a checkpoint that was saved to the end, also one that was renamed to set it aside.

    One without a seal, of an earlier version, was if it has the file that is written last. One with a seal was,
    whatever it has lost since: what is missing is told, see :func:`~simpo_trainer.record.seal.broken_files`.
    """
    if not _is_named_so(folder) or is_open(folder):
        return False
    return (folder / STATE).is_file() or read_seal(folder) is not None


def torn_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run that were not saved, or not removed, to the end, oldest first."""
    return sorted(
        (found for found in folder.glob("checkpoint-*") if _is_named_so(found) and is_open(found)), key=step_of
    )


def _is_named_so(folder: Path) -> bool:
    return re.fullmatch(r".*checkpoint-\d+", folder.absolute().name) is not None


def step_of(checkpoint: Path) -> int:
    """Returns the optimiser step N of a `checkpoint-N` folder."""
    return int(checkpoint.name.rpartition("-")[2])


def check_runs(folders: Sequence[Path], command: str = "compare") -> None:
    """Check that each folder is the output folder of a run, and that none is given twice.

    Args:
        folders: to check.
        command: the one that needs them.

    Raises:
        SimPOError: a folder is not one, or is given twice; the message says what is in the folder instead.
    """
    seen: set[Path] = set()
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise SimPOError(f"{_what_is_wrong(folder)} {command} needs the output folder of a run.{_remedy(folder)}")
        if folder.resolve() in seen:
            raise SimPOError(f"{folder} is given twice; each run is shown once. Leave one of them out.")
        seen.add(folder.resolve())


def run_names(folders: Sequence[Path]) -> list[str]:
    """Returns a unique name for each folder: its own, with the parent's before it or a number behind it if needed."""
    last = [folder.resolve().name or "run" for folder in folders]
    names: list[str] = []
    for folder, name in zip(folders, last, strict=True):
        parent = folder.resolve().parent
        if last.count(name) > 1 and parent.name and parent != Path.home():
            name = f"{parent.name}/{name}"
        candidate, number = name, 1
        while candidate in names:
            number += 1
            candidate = f"{name} ({number})"
        names.append(candidate)
    return names


def _what_is_wrong(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist;"
    if not folder.is_dir():
        return f"{folder} is a file;"
    return f"{folder} has no {MANIFEST}, which every run writes when it starts; {_content(folder)}"


def _content(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    if not names:
        return "it is empty;"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"it holds {', '.join(names[:_SHOWN])}{more};"


def _remedy(folder: Path) -> str:
    """Returns a sentence with runs that the user may mean: the parent, folders inside, or those with similar names."""
    if (folder.parent / MANIFEST).is_file():
        return f" {folder.parent} is one: give that."
    below = sorted(file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/{MANIFEST}"))
    if below:
        return f" In it, these are runs: {', '.join(map(str, below[:_SHOWN]))}. Give them."
    beside = {file.parent.name: file.parent for file in folder.parent.glob(f"*/{MANIFEST}")}
    if likely := near(folder.name, beside, 3) or list(beside)[:_SHOWN]:
        return (
            f" Beside it, these are runs: {', '.join(str(beside[name]) for name in sorted(likely))}. Give one of them."
        )
    return " Give the output_dir of a recipe that was trained."
