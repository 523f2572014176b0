"""Where the time of a training step goes: operators of one pass, by kind, for each row.

The first pass is warm-up, the second is clocked, the third is profiled, which slows it a little. "around" is the share
of the second that is spent outside of the model's forward, backward and the optimiser: batches, loss, logs, Python.
Kinds of operators:

    products     matrix products: backbone and head, forward and backward
    attention    the attention operator with its softmax, forward and backward
    optimiser    the update of the weights
    rest         everything else: exponentials of the head, norms, activations, rotary positions, copies, Python
"""

import argparse
import json
from typing import Any

from bench_parts import around
from bench_process import measured
from bench_training import make_job
from bench_worker import ROWS
from rich.console import Console
from rich.table import Table

_KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"),
    "optimiser": ("aten::_fused_adamw_", "aten::_foreach_norm", "aten::_foreach_mul_"),
}


def run_profile(options: argparse.Namespace) -> None:
    """Profile every row of `options.rows`, print seconds and shares, and the JSON line."""
    job = make_job(options) | {"profile": True, "epochs": 3}
    rows = [{"row": name, **_row(measured(name, job), options.steps)} for name in options.rows or _default_rows()]
    console = Console(width=110)
    table = Table("row", "total, s", *("products", "attention", "optimiser", "rest"), "around", "largest of the rest")
    for row in rows:
        if "error" in row:
            table.add_row(row["row"], "failed")
            continue
        shares = [f"{seconds:.2f} ({seconds / row['total']:.0%})" for seconds in row["kinds"].values()]
        largest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["largest"])
        table.add_row(row["row"], f"{row['total']:.2f}", *shares, f"{row['around']:.2%}", largest)
    console.print(table)
    print(json.dumps({"command": " ".join(["python scripts/benchmark.py", *options.arguments]), "rows": rows}))
    if errors := [row["error"] for row in rows if "error" in row]:
        raise SystemExit("\n".join(errors))


def _default_rows() -> list[str]:
    return [name for name, layout in ROWS.items() if layout in ("padded", "shared_prefix", "packed")]


def _row(result: dict[str, Any], steps: int) -> dict[str, Any]:
    """A worker's result by kinds of operators, with what is around the model; a pass has so many steps."""
    if "error" in result:
        return result
    kinds = dict.fromkeys(("products", "attention", "optimiser", "rest"), 0.0)
    rest: dict[str, float] = {}
    for name, seconds in result["operators"].items():
        kind = kind_of(name)
        kinds[kind] += seconds
        if kind == "rest":
            rest[name.removeprefix("aten::")] = seconds
    clocked = (result[name][steps : 2 * steps] for name in ("parts", "seconds"))
    largest = sorted(rest.items(), key=lambda item: -item[1])[:3]
    return {"total": sum(kinds.values()), "kinds": kinds, "around": around(*clocked), "largest": largest}


def kind_of(operator: str) -> str:
    """The kind that an operator of torch's profiler belongs to."""
    if "scaled_dot_product" in operator:
        return "attention"
    return next((kind for kind, names in _KINDS.items() if operator in names), "rest")
