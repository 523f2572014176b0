"""Train every kind of model under every engine, and write the table into the documents: `make test-matrix`."""

import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from engines import ENGINES, missing  # noqa: E402
from matrix_cells import MODELS, Cell, all_cells  # noqa: E402
from matrix_runs import METRICS, WEIGHTS, Failed, check, make_reference, write_inputs  # noqa: E402
from suites import run_suite  # noqa: E402

PAGE = ROOT / "docs" / "matrix.md"
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")


def _prepare(left: Sequence[Cell], folder: Path, commit: str) -> Callable[[Cell, Path], dict[str, Any]]:
    """Make the inputs, and the runs in one process that the cells are compared with."""
    inputs = folder / commit
    if not inputs.exists():
        write_inputs(inputs)
    for model in dict.fromkeys(cell.model for cell in left):
        make_reference(inputs, model)
    return lambda cell, place: _run(cell, inputs, place.name)


def _run(cell: Cell, inputs: Path, out: str) -> dict[str, Any]:
    if package := missing(cell.kind):
        return {"verdict": f"skipped: {package} is not installed"}
    for name in (out, f"{out}-on"):
        shutil.rmtree(inputs / name, ignore_errors=True)
    try:
        found = check(cell, inputs, out)
    except Exception as error:
        verdict = f"FAILED: {error}" if isinstance(error, Failed) else f"FAILED: {type(error).__name__}: {error}"
        return {"verdict": verdict.replace(str(inputs), ".")}
    return {"verdict": f"refused: {found['refused']}" if "refused" in found else "equal", **found}


def _write(results: Sequence[dict[str, Any]], commit: str) -> Path:
    by_name = {each["case"]: each for each in results}
    versions = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    lines = [
        "# What trains under what",
        "",
        "Every kind of training under every engine, by the launcher files in `recipes/accelerate`, with two processes",
        "on CPUs and over gloo. Each cell trains four steps of a tiny model with evaluations, saves, goes on from its",
        "middle, and is compared with one process that holds the whole model, with padded rows and without gradient",
        f"checkpointing. *equal* means that each logged number is the same to {METRICS:g} and each trained weight to",
        f"{WEIGHTS:g}, and that going on from the middle gives the same again. *refused* is the beginning of an",
        "error, which says why and what to use instead. ZeRO-3 splits every weight.",
        "Made by `make test-matrix`; on accelerators none of it was run.",
        "",
        f"Commit {commit}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; Python {python_version()}, {versions}.",
        "",
        f"| | {' | '.join(ENGINES)} |",
        f"|---|{'---|' * len(ENGINES)}",
    ]
    cells = {(cell.model, cell.kind): cell for cell in all_cells()}
    for model in MODELS:
        row = [_shown(by_name.get(cells[model, engine].name), cells[model, engine]) for engine in ENGINES]
        lines.append(f"| {model} | {' | '.join(row)} |")
    lines += [
        "",
        "In a cell: gradient checkpointing on or off, the layout of batches, and the largest difference of a weight.",
        "",
    ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    return PAGE


def _shown(found: dict[str, Any] | None, cell: Cell) -> str:
    if found is None:
        return "not run"
    if found["verdict"] != "equal":
        return found["verdict"].replace("|", "/")
    return f"equal: {cell.checkpointing}, {cell.layout}, {found['weights']:.0e}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    title = "Train every kind of model under every engine, and compare it with one process."
    sys.exit(run_suite(title, all_cells(), ROOT / "runs" / "matrix", prepare=_prepare, write=_write))
