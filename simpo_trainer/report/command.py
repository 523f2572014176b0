"""The work of `simpo report`: read the runs, write the page."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import SimPOError
from ..record.folders import REPORT, check_runs, run_names
from . import charts, parts
from .page import Html, element, gallery, joined, page, section
from .run_files import RunFiles, read_run


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page about one run, or several side by side, for its owner's eyes alone.

    Args:
        folders: output folders of runs.
        output: the file; unset means report.html in the folder of the one run.

    Returns:
        The file.

    Raises:
        SimPOError: a folder is not a run or cannot be read, several runs come without `output`, or the file cannot be
            written.
    """
    check_runs(folders, "report")
    if output is None and len(folders) > 1:
        raise SimPOError("A report on several runs needs the name of its file. Add --output comparison.html.")
    file = output or folders[0] / REPORT
    if file.is_dir():
        raise SimPOError(f"--output {file} is a folder; a report is a file. Give --output {file / REPORT}.")
    content = report_of(folders)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_private(file, content)
    except OSError as error:
        raise SimPOError(f"{file} cannot be written: {error.strerror}. Give --output a file of yours.") from None
    return file


def report_of(folders: Sequence[Path], *, refresh: int | None = None, public: bool = False) -> str:
    """Returns the page about runs.

    Args:
        folders: their output folders.
        refresh: seconds after which a browser asks for the page again; None for never.
        public: whether to leave out what the model and the data say.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    if len(runs) == 1:
        return page(f"{runs[0].name}: SimPO run", _one(runs[0], public=public), refresh=refresh)
    return page(", ".join(run.name for run in runs), _several(runs), refresh=refresh)


def write_private(file: Path, content: str) -> None:
    """Write a file in one step, readable by its owner alone.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    scratch = file.with_name(f".{file.name}.tmp")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write(content)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    scratch.replace(file)


def _one(run: RunFiles, *, public: bool) -> Html:
    return joined(
        [
            element("h1", run.name),
            parts.summary(run),
            section("Health", parts.verdict(run)),
            section("Curves", gallery(charts.curves(run))),
            parts.before_and_after(run, public=public),
            Html("") if public else parts.samples(run),
            parts.data(run),
            parts.settings(run),
            parts.circumstances(run),
        ]
    )


def _several(runs: Sequence[RunFiles]) -> Html:
    each = [joined([element("h3", run.name), parts.summary(run), parts.verdict(run)]) for run in runs]
    return joined(
        [
            element("h1", f"{len(runs)} runs"),
            section("Curves", gallery(charts.several(runs))),
            parts.differences(runs),
            section("Each run", *each),
        ]
    )
