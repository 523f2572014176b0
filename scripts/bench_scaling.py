"""Strong scaling: the same global batch by one process and by several, one thread each where the device is a CPU.

pairs/s      pairs over the median time of a pass
x one        over those of one process
efficiency   that over the number of processes: 100 % where work is all that there is
last loss    of the last step; the run fails where numbers of processes disagree
"""

import argparse
import json

from bench_process import RATE, measured
from bench_rows import two_by_two, unique_tokens
from bench_training import losses_agree, make_job, setting_of, summary
from rich.console import Console
from rich.table import Table

ROW = "ours, packed"


def run_scaling(options: argparse.Namespace) -> None:
    """Train with 1, 2, 4, ... processes up to `options.processes`, print the table and the JSON line."""
    job = make_job(options)
    rate = measured(RATE, {"cuda": job["cuda"]})
    pairs, tokens = len(two_by_two(job["rows"])), unique_tokens(job["rows"])
    counts = [count for count in (1, 2, 4, 8, 16) if count < options.processes] + [options.processes]
    results = [measured(ROW, job | {"processes": count}) for count in counts]
    if errors := [result["error"] for result in (rate, *results) if "error" in result]:
        raise SystemExit("\n".join(errors))
    rows = [
        {"processes": count, **summary(result, pairs, tokens, options.steps, floor=1.0)}
        for count, result in zip(counts, results, strict=True)
    ]
    console = Console(width=110)
    setting = setting_of(options, job, rate)
    console.print(", ".join(f"{key} {value}" for key, value in setting.items()), highlight=False)
    table = Table("processes", "pairs/s", "x one", "efficiency", "last loss")
    for row in rows:
        row["over_one"] = row["pairs_per_second"] / rows[0]["pairs_per_second"]
        shown = f"{row['pairs_per_second']:.2f}", f"{row['over_one']:.2f}", f"{row['over_one'] / row['processes']:.0%}"
        table.add_row(str(row["processes"]), *shown, f"{row['last_loss']:.5f}")
    console.print(table)
    agree = losses_agree(rows, 3e-2 if job["cuda"] else 1e-3)
    console.print("losses agree" if agree else "LOSSES DISAGREE", highlight=False)
    print(json.dumps({"setting": setting, "rows": rows, "losses_agree": agree}))
    if not agree:
        raise SystemExit(1)
