"""The work of `simpo compare`: read the runs, print their table, write the files."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import SimPOError
from ..record.folders import check_runs, run_names
from ..record.reader import read_runs
from .comparison import Comparison, compare_runs
from .comparison_picture import comparison_picture
from .table import as_csv, as_json, show

FILE_NAME = "comparison"


def compare(folders: Sequence[Path], output: Path | None, console: Console) -> Comparison:
    """Print the figures of finished runs side by side.

    Args:
        folders: the output folders of the runs.
        output: where to write comparison.png, comparison.json and comparison.csv, or None for no files.
        console: what to print on.

    Raises:
        SimPOError: a folder is not a run or cannot be read, or `output` cannot be written.
    """
    check_runs(folders)
    runs = [run for folder, name in zip(folders, run_names(folders), strict=True) for run in read_runs(folder, name)]
    comparison = compare_runs(runs)
    show(comparison, console)
    if output is not None:
        try:
            written = _write(comparison, output)
        except OSError as error:
            raise SimPOError(
                f"--output {output} cannot be written: {error.strerror}. Give --output a folder of yours."
            ) from None
        console.print(f"Wrote {', '.join(written)} in {output}", highlight=False, soft_wrap=True)
    return comparison


def _write(comparison: Comparison, output: Path) -> list[str]:
    output.mkdir(parents=True, exist_ok=True)
    for ending, text in (("json", as_json(comparison)), ("csv", as_csv(comparison))):
        (output / f"{FILE_NAME}.{ending}").write_text(text, encoding="utf-8")
    picture = output / f"{FILE_NAME}.png"
    picture.unlink(missing_ok=True)
    drawn = comparison_picture(comparison, picture)
    return [f"{FILE_NAME}.{ending}" for ending in ("png", "json", "csv") if drawn or ending != "png"]
