"""The facts of each round, read from its files: what the tables and the picture over the rounds show."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..answers.card import read_card
from ..answers.requests import hash_of
from ..answers.row_files import read_rows
from ..record.reader import Run, read_runs
from .files import RoundFiles, is_finished

# Samples of prompts, drawn again, from which an interval is read, and their seed.
_SAMPLES, _SEED = 2000, 0
# Words of a run whose repetition counts.
_GRAM = 4

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RoundFacts:
    """The figures of a round; None for what was not measured. Round 0 is the start.

    Changes are against the start model, prompt by prompt. `change_low` and `change_high` bound 95 % of the means of
    prompts that are drawn again. `pair_accuracy` is the share of held-out pairs whose chosen answer is the likelier one
    per token, and `chosen_drift` what the chosen ones have gained since the start, in nats per token.
    `repeated` is the share of runs of four words of an answer that occurred in it before.
    """

    round: int
    model: str
    held_out_score: float
    not_scored: int
    change: float | None
    change_low: float | None
    change_high: float | None
    rose: float | None
    fell: float | None
    pair_accuracy: float | None
    chosen_drift: float | None
    answer_tokens: float | None
    cut_off: float
    repeated: float
    rows_trained_on: int | None
    prompts_without_rows: int | None


@dataclass(frozen=True)
class Standing:
    """Which round is the best so far, and how many rounds in a row were below the best of their time."""

    best: RoundFacts
    below: int


def standing(rounds: Sequence[RoundFacts]) -> Standing:
    """Returns how rounds stand; of equal scores the earliest is the best, the start's too."""
    best, below = rounds[0], 0
    for each in rounds[1:]:
        below = below + 1 if each.held_out_score < best.held_out_score else 0
        best = each if each.held_out_score > best.held_out_score else best
    return Standing(best, below)


def read_round(output_dir: Path, number: int, start_model: str) -> RoundFacts:
    """Returns the facts of a round whose files are all there.

    Args:
        output_dir: the folder of the iteration.
        number: of the round; 0 for the start.
        start_model: the name of the start model, as it may be shown.

    Raises:
        SimPOError: a file cannot be read.
    """
    files, start = RoundFiles(output_dir, number), RoundFiles(output_dir, 0)
    rows = read_rows(files.held_out)
    scores = {_prompt_of(row): row["scores"][0] for row in rows}
    known = [score for score in scores.values() if score is not None]
    selected = ((read_card(files.pairs) or {}).get("selected") or {}) if number else {}
    left_out = selected.get("prompts_left_out") or {}
    counts = [row["token_counts"][0] for row in rows if row["token_counts"][0] is not None]
    return RoundFacts(
        round=number,
        model=f"{files.name}/{files.model.name}" if number else start_model,
        held_out_score=fmean(known),
        not_scored=len(scores) - len(known),
        **_changes(scores, read_rows(start.held_out) if number else None),
        **_of_pairs(output_dir, number),
        answer_tokens=fmean(counts) if counts else None,
        cut_off=fmean(row["finish_reasons"][0] == "length" for row in rows),
        repeated=fmean(repeated_share(row["answers"][0]) for row in rows),
        rows_trained_on=selected.get("rows"),
        prompts_without_rows=sum(left_out.values()) if number else None,
    )


def repeated_share(answer: str) -> float:
    """Returns the share of an answer's runs of four words that occurred in it before; 0 for one of fewer words."""
    words = answer.split()
    grams = Counter(tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1))
    return 1 - len(grams) / grams.total() if grams else 0.0


def _prompt_of(row: Mapping[str, Any]) -> str:
    """Returns what tells the prompt of a row in any round; the key of the row depends on the model too."""
    return hash_of(row["prompt"], row.get("tools"), row.get("chat_template_kwargs"))


def _changes(scores: Mapping[str, float | None], start_rows: Rows | None) -> dict[str, float | None]:
    """Returns the changes since the start of the prompts whose answers were scored both times."""
    changes: list[float] = []
    for row in start_rows or ():
        before, now = row["scores"][0], scores.get(_prompt_of(row))
        if before is not None and now is not None:
            changes.append(now - before)
    if not changes:
        return dict.fromkeys(("change", "change_low", "change_high", "rose", "fell"))
    low, high = interval(changes)
    return {
        "change": fmean(changes),
        "change_low": low,
        "change_high": high,
        "rose": fmean(change > 0 for change in changes),
        "fell": fmean(change < 0 for change in changes),
    }


def interval(changes: Sequence[float]) -> tuple[float, float]:
    """Returns bounds of 95 % of the means of changes that are drawn again; the same for the same changes."""
    generator, values = np.random.default_rng(_SEED), np.asarray(changes)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(_SAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _of_pairs(output_dir: Path, number: int) -> dict[str, float | None]:
    """Returns what the trainings have measured on the held-out pairs; of the start, what the first one has."""
    first = _run(RoundFiles(output_dir, 1).model)
    before = first.untrained if first else None
    if not number:
        return {"pair_accuracy": _finite(before.accuracy if before else None), "chosen_drift": None}
    run = first if number == 1 else _run(RoundFiles(output_dir, number).model)
    after = run.scored if run else None
    chosen = [None if point is None else point.chosen for point in (before, after)]
    drift = None if chosen[0] is None or chosen[1] is None else chosen[1] - chosen[0]
    return {"pair_accuracy": _finite(after.accuracy if after else None), "chosen_drift": _finite(drift)}


def _run(folder: Path) -> Run | None:
    """Returns the run in a folder; None where it has not ended yet."""
    if not is_finished(folder):
        return None
    runs = read_runs(folder, folder.name)
    return runs[0] if runs else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
