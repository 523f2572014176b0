"""The page of what `make gpu` found: docs/gpu.md."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_training import BFLOAT16_TOLERANCE, compare, losses_agree
from gpu_cases import CASES, GROUPS, TRL, lacks, left_out

from simpo_trainer.record.privacy import private_texts

ROOT = Path(__file__).parents[1]
_LONGEST_REASON = 200
_HEAD = """# On a card

`make gpu` runs what waits for a card, within ten minutes: the tests marked `gpu`, then training steps of random models
in bfloat16, ours and trl's `CPOTrainer` in SimPO mode, the case that is worth most first. It writes this page anew
after each case, and a line of `runs/gpu/results.jsonl`, so nothing is lost when the time is over, a case fails or the
run is stopped. The same command goes on: what has a result for the same code and card is not run again. `make gpu
GPU='--budget 1200'` has twenty minutes. `python scripts/gpu.py --device cpu` tries all of it out with tiny models, and
writes into `runs/gpu-cpu`.

Shapes are those of Llama-3.2-1B (1b, embedding and head one weight) and Llama-3.1-8B (8b), vocabulary 128,256; LoRA has
rank 16 on all linear layers, QLoRA the same over 4 bits (nf4) by bitsandbytes. 8b is trained with gradient
checkpointing. The columns are those of [benchmarks](benchmarks.md); "peak" includes the weights, "whole" is a case from
its start to its end. Packed rows under SDPA attend piece by piece; under flash attention, answers lie one after the
other, each with its prompt ([layouts](layouts.md)).
"""
_UNTESTED = """
**It has run on no card so far: everything that this page would show is untested.** On a machine with one:

```bash
make install
.venv/bin/pip install bitsandbytes flash-attn   # without them, their rows are skipped
make gpu
```
"""
_COLUMNS = ("row", "attention", "pairs/s", "x trl", "tokens/s", "peak, GiB", "x trl", "waits", "last loss", "x floor")
Found = Mapping[str, Mapping[str, Any]]


def page(facts: Mapping[str, Any] | None, found: Found, tests: Mapping[str, Any] | None = None) -> str:
    """The whole page.

    Args:
        facts: of the machine and the run, a line each; None where there was no card yet.
        found: name of a case to its result: the figures of a row, or `error`, or `not_run`.
        tests: the result of the tests marked gpu.
    """
    if facts is None:
        return "\n".join([_HEAD + _UNTESTED, left_out(), ""])
    lines = [_HEAD, "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items())]
    if tests:
        lines += [
            "",
            "## Tests marked gpu",
            "",
            _cell(tests["said"]),
            *(f"- {_cell(line)}" for line in tests["failed"]),
        ]
    for group in GROUPS:
        lines += ["", f"## {group}", "", *_table(group, found)]
    return "\n".join([*lines, "", "## Not on one card", "", left_out(), ""])


def write(path: Path, text: str) -> None:
    """Write a page so that whoever is killed here leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def disagreements(found: Found) -> list[str]:
    """The groups whose rows have other losses than their first row."""
    return [group for group in GROUPS if not losses_agree(_rows(group, found), BFLOAT16_TOLERANCE)]


def _rows(group: str, found: Found) -> list[dict[str, Any]]:
    """The rows of a table; those without a result say why in `error`."""
    rows = []
    for case in (case for case in CASES if case.group == group):
        package = lacks(case)
        missing = f"skipped: {package} is not installed" if package else "not run: the time was over"
        result = dict(found.get(case.name, {"not_run": missing}))
        if "not_run" in result:
            result["error"] = result["not_run"]
        elif "error" in result:
            result["error"] = f"failed: {_shortened(result['error'])}"
        rows.append({**result, "row": case.row, "attention": case.attention})
    compare(rows, TRL, "pairs_per_second", "over_trl")
    compare(rows, TRL, "peak_bytes", "peak_over_trl")
    return rows


def _table(group: str, found: Found) -> list[str]:
    columns = (*_COLUMNS, "whole, s")
    rows = _rows(group, found)
    shown = [f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * (len(columns) - 2)}", *map(_line, rows)]
    return [*shown, "", _agreement(rows)]


def _line(row: Mapping[str, Any]) -> str:
    start = f"| {row['row']} | {row['attention']} |"
    if "error" in row:
        return f"{start} {_cell(row['error'])} |{' |' * (len(_COLUMNS) - 2)}"
    peak = row["peak_bytes"] and row["peak_bytes"] / 2**30
    figures = (
        *(f"{row['pairs_per_second']:.2f}", _shown(row["over_trl"]), f"{row['tokens_per_second']:.0f}"),
        *(_shown(peak), _shown(row["peak_over_trl"]), f"{row['waits']:.1%}", f"{row['last_loss']:.5f}"),
        *(f"{row['over_floor']:.2f}", f"{row['seconds']:.0f}"),
    )
    return f"{start} {' | '.join(figures)} |"


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"


def _agreement(rows: list[dict[str, Any]]) -> str:
    runs = [row["losses"] for row in rows if "error" not in row]
    if len(runs) < 2:
        return "Fewer than two rows have losses to compare."
    if not losses_agree(rows, BFLOAT16_TOLERANCE):
        return f"**LOSSES DISAGREE** by more than {BFLOAT16_TOLERANCE:.0%} between rows."
    largest = max(abs(loss - first) / abs(first) for run in runs for loss, first in zip(run, runs[0], strict=True))
    return (
        f"Losses of all {len(runs[0])} steps agree between {len(runs)} rows: the largest difference is {largest:.2%}, "
        f"{BFLOAT16_TOLERANCE:.0%} are allowed."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _cell(text: Any) -> str:
    """On one line, in a table, without names and paths of this machine."""
    shown = str(text)
    for private, public in private_texts(ROOT).items():
        shown = shown.replace(private, public)
    return " ".join(shown.replace("|", "/").split())
