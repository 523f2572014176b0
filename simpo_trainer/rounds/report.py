"""The rounds as a table for the terminal, and as JSON and CSV for programs."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from .facts import RoundFacts, Standing

_DASH = "-"

# Makes the text of a figure in the table from the facts of a round.
Cell = Callable[[RoundFacts], str]


def show(rounds: Sequence[RoundFacts], best: RoundFacts, console: Console) -> None:
    """Print a table with a column for each round and a row for each figure that one of them has."""
    table = Table()
    table.add_column("")
    for each in rounds:
        name = f"round {each.round}" if each.round else "start"
        table.add_column(f"{name} (best)" if each is best and len(rounds) > 1 else name, justify="right")
    for title, cell in _ROWS.items():
        cells = [cell(each) for each in rounds]
        if {*cells} != {_DASH}:
            table.add_row(title, *cells)
    if not console.is_terminal:  # a file has no fixed width
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def as_json(rounds: Sequence[RoundFacts], stands: Standing) -> str:
    """Returns the facts of the rounds, and which is the best; missing values are null."""
    best = {"round": stands.best.round, "model": stands.best.model, "held_out_score": stands.best.held_out_score}
    whole = {"best": best, "rounds_below_the_best_in_a_row": stands.below, "rounds": [asdict(each) for each in rounds]}
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def as_csv(rounds: Sequence[RoundFacts]) -> str:
    """Returns the facts as CSV with a line for each round; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(RoundFacts)], lineterminator="\n")
    writer.writeheader()
    for each in rounds:
        writer.writerow(asdict(each))
    return text.getvalue()


# ---- Rows ----


def _fact(name: str, fmt: str) -> Cell:
    def cell(facts: RoundFacts) -> str:
        value: Any = getattr(facts, name)
        return _DASH if value is None else f"{value:{fmt}}"

    return cell


def _interval(facts: RoundFacts) -> str:
    if facts.change_low is None or facts.change_high is None:
        return _DASH
    return f"{facts.change_low:+.3g} to {facts.change_high:+.3g}"


def _shares(facts: RoundFacts) -> str:
    return _DASH if facts.rose is None or facts.fell is None else f"{facts.rose:.1%} / {facts.fell:.1%}"


def _not_scored(facts: RoundFacts) -> str:
    return f"{facts.not_scored:,}" if facts.not_scored else _DASH


_ROWS: dict[str, Cell] = {
    "held-out score": _fact("held_out_score", ".4g"),
    "change since the start": _fact("change", "+.3g"),
    "... 95 % interval": _interval,
    "prompts that rose / fell": _shares,
    "held-out answers not scored": _not_scored,
    "held-out pair accuracy": _fact("pair_accuracy", ".3f"),
    "chosen drift, nats per token": _fact("chosen_drift", "+.3f"),
    "tokens of an answer": _fact("answer_tokens", ".1f"),
    "answers cut off": _fact("cut_off", ".1%"),
    "repeated runs of 4 words": _fact("repeated", ".1%"),
    "rows trained on": _fact("rows_trained_on", ","),
    "prompts without a row": _fact("prompts_without_rows", ","),
}
