"""`simpo compare`: runs side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FOLDER", help="Also write comparison.png (curves), comparison.json and comparison.csv."
        ),
    ] = None,
) -> None:
    """Show the results of runs side by side: accuracy, margin, drift, lengths, time and memory.

    Example: simpo compare runs/sigmoid runs/hinge --output runs
    """
    from ..results.command import compare as compare_folders

    compare_folders(runs, output, Console())
