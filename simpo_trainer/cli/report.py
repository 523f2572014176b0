"""`simpo report`: a page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SimPOError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; by default report.html in the folder of the run."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show the page in a browser on this machine, renewed while the run trains; no file."
        ),
    ] = False,
) -> None:
    """Write a page about a run: what was run, its health, curves, answers, data and settings; several in one picture.

    It is made of the files in the folder, so it works for a run that was killed too.

    Example: simpo report runs/my-run
    """
    from ..report.command import write_report

    if not watch:
        typer.echo(f"Wrote {write_report(runs, output)}")
        return
    if output is not None:
        raise SimPOError("--watch writes no file. Leave out --output, or --watch.")
    from ..report.watch import Watch

    with Watch(runs) as server:
        typer.echo(f"Open {server.url} in a browser on this machine. Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")
