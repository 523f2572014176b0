"""The demonstration by several methods: cells of a method and a seed, and the page that they fill.

All cells train from the same model on the same pairs for the same number of steps. The rate of DPO and SFT is searched
as SimPO's was; the other losses take SimPO's rate and their own defaults.
"""

import json
import statistics
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from demo_report import draw
from demo_runs import ROOT, Demo
from demo_scores import Evaluation, evaluate, paired_interval
from demo_search import Setting, climb
from marked_page import write_between

from simpo_trainer.environment import library_versions

PAGE = ROOT / "docs" / "real-model.md"
PICTURE = ROOT / "docs" / "real-model.png"
SEEDS = (42, 43, 44)
_MARKS = "<!-- cells: written by `make demo-all` -->", "<!-- end of cells -->"


@dataclass(frozen=True)
class Cell:
    """A run: its method, which has a rate of its own where that was searched, its seed, and overrides of the recipe."""

    method: str
    seed: int
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns a name for the folder of the run."""
        return f"{self.method}-{self.seed}"


_WORDS = {"dpo": ("--method", "dpo"), "sft": ("--method", "sft")}
LOSSES = ("hinge", "ipo", "simper", "orpo")


def cells(best: Setting) -> list[Cell]:
    """Returns all cells: SimPO, DPO and SFT with three seeds each, four other losses with one."""
    epochs = ("--num_train_epochs", str(best.num_train_epochs))
    rate = ("--learning_rate", f"{best.learning_rate:g}")
    found = [Cell("simpo", seed, tuple(best.words())) for seed in SEEDS]
    found += [Cell(method, seed, (*_WORDS[method], *epochs)) for method in _WORDS for seed in SEEDS]
    return found + [Cell(loss, SEEDS[0], ("--loss_type", loss, *rate, *epochs)) for loss in LOSSES]


def run_all(demo: Demo, before: Evaluation, best: Setting) -> None:
    """Run the cells that were not run, and write the page after each."""
    for cell in cells(best):
        if not _result(demo, cell).exists():
            words = [*cell.words, "--seed", str(cell.seed)]
            if cell.method in _WORDS:
                words += ["--learning_rate", f"{_searched_rate(demo, cell):g}"]
            _run(demo, before, cell, words)
        write_page(demo, before, best)


def write_page(demo: Demo, before: Evaluation, best: Setting) -> None:
    """Write the tables of the cells that were run into the page, and draw the picture."""
    found = {cell: json.loads(path.read_text()) for cell in cells(best) if (path := _result(demo, cell)).exists()}
    lines = [
        *_cell_table(cells(best), found, before),
        "",
        *_method_table(found),
        "",
        *_rates(demo, best),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    lines += ["", f"Written {date.today()} with {versions}."]
    write_between(PAGE, _MARKS, "\n".join(lines))
    first = {cell.method: evaluate(demo.folder / f"cells/{cell.name}-held-out.jsonl") for cell in reversed(list(found))}
    draw(PICTURE, before, {name: first[name] for name in ("simpo", "dpo", "sft") if name in first})


def _run(demo: Demo, before: Evaluation, cell: Cell, words: list[str]) -> None:
    run = demo.train(f"cells/{cell.name}", words)
    after = demo.greedy(run, "held-out", f"cells/{cell.name}")
    mean, low, high = paired_interval(before, after)
    facts: dict[str, Any] = {
        **after.figures(),
        "interval": [mean, low, high],
        "held_out": demo.results(run),
        "seconds": json.loads((run / "all_results.json").read_text())["train_runtime"],
    }
    _result(demo, cell).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    demo.drop_weights(run)


def _result(demo: Demo, cell: Cell) -> Path:
    return demo.folder / "cells" / f"{cell.name}.json"


def _searched_rate(demo: Demo, cell: Cell) -> float:
    """Returns the rate with which a cell's method meets most constraints on the search prompts."""
    known = _searched(demo, cell.method)

    def share_at(rate: float) -> float:
        if rate not in known:
            name = f"search/{cell.method}-{rate:g}"
            run = demo.train(name, [*cell.words, "--learning_rate", f"{rate:g}"])
            known[rate] = demo.greedy(run, "search", name).share
            _searches(demo, cell.method).write_text(json.dumps(known), encoding="utf-8")
            demo.drop_weights(run)
        return known[rate]

    shares = climb(share_at)
    return max(shares, key=lambda rate: shares[rate])


def _searches(demo: Demo, method: str) -> Path:
    return demo.folder / "search" / f"{method}.json"


def _searched(demo: Demo, method: str) -> dict[float, float]:
    """Returns the share of constraints met at each rate that was tried with a method."""
    file = _searches(demo, method)
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {float(rate): share for rate, share in found.items()}


def _cell_table(all_cells: list[Cell], found: dict[Cell, dict[str, Any]], before: Evaluation) -> list[str]:
    head = ["method", "seed", "constraints met", "difference by prompt, 95 % interval", "prompts with all met"]
    head += ["mean tokens", "repeat rate", "held-out pair accuracy", "log-prob of chosen", "training, s"]
    rows = [_start_row(before, next((facts["held_out"] for facts in found.values()), {}))]
    for cell in all_cells:
        facts = found.get(cell)
        rows.append([cell.method, str(cell.seed), *(_cells_of(facts) if facts else ["not run"] * (len(head) - 2))])
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _start_row(before: Evaluation, held_out: dict[str, Any]) -> list[str]:
    figures, start = before.figures(), held_out.get("start", {})
    numbers = [
        f"{start[name]:{form}}" if name in start else "" for name, form in (("accuracy", ".1%"), ("chosen", "+.3f"))
    ]
    shown = [f"{figures['constraints met']:.1%}", "", f"{figures['prompts with all met']:.1%}"]
    return ["before", "", *shown, f"{figures['mean tokens']:.1f}", f"{figures['repeat rate']:.1%}", *numbers, ""]


def _cells_of(facts: dict[str, Any]) -> list[str]:
    mean, low, high = facts["interval"]
    end = facts["held_out"]["end"]
    return [
        f"{facts['constraints met']:.1%}",
        f"{mean:+.3f} ({low:+.3f} to {high:+.3f})",
        f"{facts['prompts with all met']:.1%}",
        f"{facts['mean tokens']:.1f}",
        f"{facts['repeat rate']:.1%}",
        f"{end['accuracy']:.1%}",
        f"{end['chosen']:+.3f}",
        f"{facts['seconds']:.0f}",
    ]


def _method_table(found: dict[Cell, dict[str, Any]]) -> list[str]:
    """Returns the mean and the range over the seeds of a method."""
    shares: dict[str, list[float]] = {}
    for cell, facts in found.items():
        shares.setdefault(cell.method, []).append(facts["constraints met"])
    rows = [
        [method, str(len(each)), f"{statistics.fmean(each):.1%}", f"{min(each):.1%} to {max(each):.1%}"]
        for method, each in shares.items()
    ]
    return [_line(["method", "seeds", "constraints met, mean", "range"]), _line(["---"] * 4), *map(_line, rows)]


def _rates(demo: Demo, best: Setting) -> list[str]:
    """Returns a line on each search."""
    lines = []
    for method in _WORDS:
        done = [f"{rate:g}: {share:.1%}" for rate, share in sorted(_searched(demo, method).items())]
        lines.append(
            f"- {method}, rates searched (constraints met on the search prompts): {', '.join(done) or 'not run'}."
        )
    setting = f"rate {best.learning_rate:g}, ratio {best.gamma_beta_ratio:g}, beta {best.beta:g}"
    epochs = f"{best.num_train_epochs} epoch{'s' if best.num_train_epochs > 1 else ''}"
    others = "hinge, ipo, simper and orpo: that rate, their own defaults otherwise"
    return [*lines, f"- SimPO: {setting}. {others[0].upper()}{others[1:]}. All methods: {epochs}."]


def _line(cells_of_row: list[str]) -> str:
    return f"| {' | '.join(cells_of_row)} |"
