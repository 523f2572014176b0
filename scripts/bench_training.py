"""Whole training steps: trl's CPO trainer in SimPO mode, this package in each layout, and the floor under both.

Every row trains in a process of its own, one after the other, on the same token ids from the same weights: AdamW,
float32 on a CPU, bfloat16 autocast on CUDA, the same pairs at every step, grouped by length (which trl's trainer
would not do). A repeat is a pass over the same few batches, and the first pass is warm-up. Columns:

    pairs/s     pairs over the median time of a pass
    tokens/s    tokens of those pairs without padding, a prompt counted once for its answers
    peak        CPU: largest resident memory during the steps, less what was resident when the trainer was built;
                CUDA: largest memory allocated during the steps, weights included
    waits       share of the time between the steps, when the next batch is fetched and collated and the last one logged
    last loss   of the last step; the run fails where rows disagree
    x trl       pairs/s over trl's, and peak over trl's
    x floor     time over that of the matrix products that no implementation can avoid, at the rate of large square
                products on this machine (see `needed_flops` for what is counted)

With `--clock cpu` all seconds are those of the process's own work on all its threads.

With `--model FOLDER` the model is that of a folder, and text becomes token ids as in a run, by its chat template.

With `--ranked K`, prompts have K answers, and every two of them make a pair. The row "ours, ranked" trains on prompts
with their answers, all others on the same pairs two by two, those of a prompt one after the other in the same optimiser
step.
"""

import argparse
import json
import platform
import statistics
from dataclasses import replace
from typing import Any

import torch
import transformers
from bench_process import RATE, measured
from bench_rows import (
    MODELS,
    PROFILES,
    backbone_parameters,
    choose_batches,
    folder_shape,
    medians,
    model_shape,
    needed_flops,
    random_pairs,
    random_ranked,
    real_pairs,
    two_by_two,
    unique_tokens,
)
from bench_worker import RANKED, ROWS
from rich.console import Console
from rich.table import Table

from simpo_trainer.environment import library_versions
from simpo_trainer.tokens.rows import row_answers

BASELINE = next(iter(ROWS))
# What ranked answers are compared with, beside the baseline.
TWO_BY_TWO = "ours, shared_prefix"
# Longest over shortest pass of a row, above which its figures are said to be disturbed.
_STEADY = 1.25
# Relative difference up to which losses agree: in bfloat16, where layouts round in other places, and in float32.
BFLOAT16_TOLERANCE, _FLOAT32_TOLERANCE = 3e-2, 1e-3


def run_training(options: argparse.Namespace) -> None:
    """Measure every row, print the table and the JSON line; exit with an error if losses disagree or a row failed."""
    job = make_job(options)
    rate = measured(RATE, {"cuda": job["cuda"]})
    if "error" in rate:
        raise SystemExit(f"The rate of matrix products could not be measured: {rate['error']}")
    flops = needed_flops(job["rows"], job["shape"], backbone_parameters(job["shape"]), frozen=job["lora"])
    floor = flops / rate["flops_per_second"]
    setting = {**setting_of(options, job, rate), "floor": f"{floor:.3g} s a pass"}
    console = Console(width=110)
    console.print(", ".join(f"{key} {value}" for key, value in setting.items()), highlight=False)

    pairs, tokens = len(two_by_two(job["rows"])), unique_tokens(job["rows"])
    names = options.rows or [name for name in ROWS if options.ranked or name != RANKED]
    rows = [
        {"row": _label(name, options.ranked), **summary(measured(name, job), pairs, tokens, options.steps, floor)}
        for name in names
    ]
    compare(rows, BASELINE, "pairs_per_second", "over_trl")
    compare(rows, BASELINE, "peak_bytes", "peak_over_trl")
    if options.ranked:
        compare(rows, TWO_BY_TWO, "pairs_per_second", "over_two_by_two")
    apart = largest_difference(rows)
    agree = losses_agree(rows, BFLOAT16_TOLERANCE if job["bf16"] else _FLOAT32_TOLERANCE)
    _print_table(console, rows)
    _say_ranked(console, rows, options.ranked)
    _say_disturbances(console, rows)
    console.print("losses agree" if agree else "LOSSES DISAGREE", highlight=False)
    if apart is not None:
        steps = len(job["rows"]) // options.pairs * job["epochs"]
        console.print(f"largest difference of a loss between rows: {apart:.1e}, of {steps} steps", highlight=False)
    print(json.dumps({"setting": setting, "rows": rows, "losses_agree": agree, "largest_difference": apart}))
    if not agree or any("error" in row for row in rows):
        raise SystemExit(1)


def make_job(options: argparse.Namespace) -> dict[str, Any]:
    """What the worker of every row reads."""
    profile = PROFILES[options.profile]
    if options.max_length:
        profile = replace(profile, max_length=options.max_length)
    folder = None if options.model in MODELS else options.model
    if folder:
        shape = folder_shape(folder)
    else:
        shape = model_shape(options.model, options.vocab, profile.max_length, options.hidden, options.layers)
    vocab = shape["vocab_size"]
    if options.data:
        pool = real_pairs(options.data, options.tokenizer or folder, profile.max_length)
        largest = max(max(ids) for row in pool for ids in (row["prompt_ids"], *row_answers(row)))
        if largest >= vocab:
            change = "take the model's own tokenizer" if folder else "set --vocab above it"
            raise SystemExit(f"{options.data} has the token id {largest}; {change}.")
    elif options.ranked:
        pool = random_ranked(profile, vocab, options.seed, options.ranked)
    else:
        pool = random_pairs(profile, vocab, options.seed)
    rows = choose_batches(pool, options.pairs, options.steps, options.seed)
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    if cuda and options.clock == "cpu":
        raise SystemExit("--clock cpu leaves out the work of the card; leave it out, or set --device cpu.")
    return {
        "rows": rows,
        "pool_medians": medians(pool),
        "pairs": options.pairs,
        "epochs": options.repeats + 1,
        "max_length": profile.max_length,
        "folder": folder,
        "shape": shape,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "cuda": cuda,
        "clock": options.clock,
        "bf16": cuda,
        "attention": options.attention,
        "lora": options.lora or options.qlora,
        "qlora": options.qlora,
        "gradient_checkpointing": options.gradient_checkpointing,
    }


def compare(rows: list[dict[str, Any]], name: str, figure: str, key: str) -> None:
    """Set each row's figure over that of the row of this name; None where one of them is not there."""
    base = next((row[figure] for row in rows if row["row"] == name and "error" not in row), None)
    for row in rows:
        row[key] = row[figure] / base if base and row.get(figure) is not None else None


def summary(result: dict[str, Any], pairs: int, tokens: int, steps: int, floor: float) -> dict[str, Any]:
    """A worker's result as a row.

    Args:
        pairs, tokens: of one pass.
        steps: of one pass; the first pass is left out.
        floor: seconds of one pass.
    """
    if "error" in result:
        return result
    seconds = result["seconds"]
    passes = [sum(seconds[start : start + steps]) for start in range(steps, len(seconds), steps)]
    median = statistics.median(passes)
    waits = sum(result["waits"][steps:])
    return {
        "pairs_per_second": pairs / median,
        "tokens_per_second": tokens / median,
        "peak_bytes": result["peak_bytes"],
        "waits": waits / sum(passes),
        "last_loss": result["losses"][-1],
        "over_floor": median / floor,
        "pass_seconds": passes,
        "losses": result["losses"],
    }


def losses_agree(rows: list[dict[str, Any]], tolerance: float) -> bool:
    """Whether the losses of all steps are those of the first row that has any."""
    runs = [row["losses"] for row in rows if "error" not in row]
    return all(
        len(run) == len(runs[0])
        and all(abs(found - first) <= tolerance * abs(first) for found, first in zip(run, runs[0], strict=True))
        for run in runs
    )


def largest_difference(rows: list[dict[str, Any]]) -> float | None:
    """The largest difference of a step's loss between two rows; None where fewer than two have losses."""
    runs = [row["losses"] for row in rows if "error" not in row]
    return max(max(step) - min(step) for step in zip(*runs, strict=False)) if len(runs) > 1 else None


def setting_of(options: argparse.Namespace, job: dict[str, Any], rate: dict[str, Any]) -> dict[str, Any]:
    """What a table was measured on and with."""
    here, pool = ("/".join(map(str, found.values())) for found in (medians(job["rows"]), job["pool_medians"]))
    return {
        "device": rate["device"],
        "threads": rate["threads"],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": library_versions().get("trl", "absent"),
        "python": platform.python_version(),
        "command": " ".join(["python scripts/benchmark.py", *options.arguments]),
        "profile": options.data or options.profile,
        "median prompt/chosen/rejected": f"{here} (of the pairs that the batches are taken from: {pool})",
        "max_length": job["max_length"],
        "model": f"{options.model} ({job['shape']['hidden_size']} x {job['shape']['num_hidden_layers']})",
        "vocab": job["shape"]["vocab_size"],
        **({"answers to a prompt": options.ranked, "prompts a step": options.pairs} if options.ranked else {}),
        "pairs a step": len(two_by_two(job["rows"])) // options.steps,
        "steps a pass": options.steps,
        "passes": f"1 + {options.repeats}",
        "seed": options.seed,
        "matrix rate": f"{rate['flops_per_second'] / 1e9:.0f} Gflop/s",
    }


def _print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("row", *(["pairs/s", "x trl", "tokens/s", "peak, MiB", "x trl", "waits", "last loss", "x floor"]))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        if "error" in row:
            table.add_row(row["row"], "failed")
            continue
        table.add_row(
            row["row"],
            f"{row['pairs_per_second']:.2f}",
            _shown(row["over_trl"], ".2f"),
            f"{row['tokens_per_second']:.0f}",
            _shown(row["peak_bytes"] and row["peak_bytes"] / 2**20, ".0f"),
            _shown(row["peak_over_trl"], ".2f"),
            f"{row['waits']:.1%}",
            f"{row['last_loss']:.5f}",
            f"{row['over_floor']:.2f}",
        )
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['row']}: {row['error']}", highlight=False, markup=False)


def _shown(figure: float | None, form: str) -> str:
    return "" if figure is None else format(figure, form)


def _label(name: str, answers: int | None) -> str:
    """What a row is called in the table."""
    return f"{name} K={answers}" if name == RANKED else name


def _say_ranked(console: Console, rows: list[dict[str, Any]], answers: int | None) -> None:
    """How much faster ranked answers are than the same pairs two by two."""
    for row in rows:
        if row["row"] == _label(RANKED, answers) and row.get("over_two_by_two"):
            times = f"{row['over_two_by_two']:.2f} times the pairs/s of {TWO_BY_TWO} on the same pairs two by two"
            console.print(f"{row['row']}: {times}", highlight=False)


def _say_disturbances(console: Console, rows: list[dict[str, Any]]) -> None:
    """Passes repeat the same work, so where their times differ, something else used the machine."""
    for row in rows:
        passes = row.get("pass_seconds") or [1.0]
        if max(passes) > _STEADY * min(passes):
            shown = ", ".join(f"{seconds:.1f}" for seconds in passes)
            console.print(f"{row['row']}: passes took {shown} s; the machine was not quiet", highlight=False)
