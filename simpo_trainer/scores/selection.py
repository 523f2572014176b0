"""Scored answers to rows that train: pairs, or all answers of a prompt in their order."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.fields import NOTES, RANKINGS
from ..data.ranking import PairChoice, ranked_pairs

# Columns that tell about each answer, in a list, and those that a trainer would take for a part of the pair or of the
# ranked answers: a row to train on has them only where they are its own.
_OF_ANSWERS = ("answers", "finish_reasons", "token_counts", "seeds")
_OF_TRAINING = ("chosen", "rejected", "responses", "margin", "chosen_score", "rejected_score", *RANKINGS, *NOTES)
_LEFT_OUT = {"prompt", *_OF_ANSWERS, *_OF_TRAINING}

_TOO_FEW = "fewer than two scored answers"
_ALL_SAME = "all answers the same"
_TIE = "all answers tie"
_TOO_CLOSE = "scores too close"


@dataclass
class Selection:
    """The rows to train on, the prompts that give none, by the reason, and the answers that were passed over."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    identical: int = 0
    # Of the identical ones, those whose score is not that of the first.
    identical_but_scored_otherwise: int = 0


def select(rows: Sequence[Mapping[str, Any]], pairs: PairChoice | Literal["ranked"], least_gap: float) -> Selection:
    """Returns rows to train on, sorted by their keys.

    An answer that is empty or has no score makes no row, and one whose text occurs before in its prompt is passed over.

    Args:
        rows: rows of answers with `scores`.
        pairs: "best_worst" makes one pair of each prompt, of equally good answers with the first; "all" and "adjacent"
            pair as rankings in data sets are paired; "ranked" puts all answers into one row, the best first.
        least_gap: the least difference of the scores of a pair; of a ranked row, between its best and its worst.
    """
    selection = Selection()
    for row in sorted(rows, key=lambda row: row["key"]):
        scores = _usable(row, selection)
        if reason := _useless(row, scores):
            selection.left_out[reason] += 1
            continue
        kept = kept_columns(row)
        if pairs == "ranked":
            order = sorted(scores, key=lambda place: -scores[place])
            made = [_ranked(row, order, scores, kept)] if _is_enough(scores, order[0], order[-1], least_gap) else []
        else:
            chosen = _best_worst(scores) if pairs == "best_worst" else ranked_pairs(scores, pairs)
            made = [_pair(row, *both, scores, kept) for both in chosen if _is_enough(scores, *both, least_gap)]
        if not made:
            selection.left_out[_TOO_CLOSE] += 1
        selection.rows += made
    return selection


def kept_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a row of answers that its rows to train on keep."""
    return {name: value for name, value in row.items() if name not in _LEFT_OUT}


def _usable(row: Mapping[str, Any], selection: Selection) -> dict[int, float]:
    """Returns the scores of the answers that can be trained on, by their places."""
    scores: dict[int, float] = {}
    first: dict[str, int] = {}
    for place, (answer, score) in enumerate(zip(row["answers"], row["scores"], strict=True)):
        if score is None:
            continue
        if not answer.strip():
            selection.empty += 1
            continue
        if (before := first.setdefault(answer, place)) != place:
            selection.identical += 1
            selection.identical_but_scored_otherwise += score != scores[before]
            continue
        scores[place] = score
    return scores


def _useless(row: Mapping[str, Any], scores: Mapping[int, float]) -> str | None:
    """Returns why no two answers differ in text and score; None where two do."""
    if len(scores) < 2:
        scored = [answer for answer, score in zip(row["answers"], row["scores"], strict=True) if score is not None]
        return _ALL_SAME if len(scored) > 1 and len(set(scored)) == 1 and scores else _TOO_FEW
    return _TIE if len(set(scores.values())) == 1 else None


def _best_worst(scores: Mapping[int, float]) -> list[tuple[int, int]]:
    # Of equal values, both take the first.
    return [(max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__))]


def _is_enough(scores: Mapping[int, float], better: int, worse: int, least_gap: float) -> bool:
    gap = scores[better] - scores[worse]
    # 0.3 - 0.2 is a little less than 0.1.
    return gap >= least_gap or math.isclose(gap, least_gap, rel_tol=1e-9)


def _pair(
    row: Mapping[str, Any], chosen: int, rejected: int, scores: Mapping[int, float], kept: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "prompt": row["prompt"],
        "chosen": _message(row["answers"][chosen]),
        "rejected": _message(row["answers"][rejected]),
        "chosen_score": scores[chosen],
        "rejected_score": scores[rejected],
        **kept,
    }


def _ranked(
    row: Mapping[str, Any], order: Sequence[int], scores: Mapping[int, float], kept: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "prompt": row["prompt"],
        "responses": [_message(row["answers"][place]) for place in order],
        "scores": [scores[place] for place in order],
        **kept,
    }


def _message(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]
