"""Ranked answers to a prompt: the columns that hold them, how good each answer is, and the pairs that they make."""

import math
from collections.abc import Mapping
from itertools import combinations, groupby
from typing import Any, Literal, TypeAlias

from .drops import RowDropped
from .fields import RANKINGS

# Which ordered pairs of a prompt's answers are trained.
PairChoice: TypeAlias = Literal["all", "best_worst", "adjacent"]


def as_number(value: Any) -> float | None:
    """A score or rank, which may be written as text; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def answer_values(row: Mapping[str, Any]) -> list[float | None]:
    """Returns the value of each answer of a ranked row, the higher the better; None where the row lacks it.

    Raises:
        RowDropped: the row has no list of answers or of their scores or ranks, or they are not as many.
    """
    ranking = next(column for column in RANKINGS if column in row)
    given = {column: row[column] for column in ("responses", ranking)}
    if None in given.values():
        raise RowDropped("missing_field")
    if not all(isinstance(value, list) for value in given.values()):
        raise RowDropped("wrong_type", ", ".join(f"{field}: {type(value).__name__}" for field, value in given.items()))
    answers, values = given.values()
    if len(answers) != len(values):
        raise RowDropped("score_count", f"{len(answers)} responses, {len(values)} {ranking}")
    sign = -1 if ranking == "ranks" else 1
    numbers = map(as_number, values)
    return [None if number is None else sign * number for number in numbers]


def ranked_pairs(values: Mapping[int, float], choice: PairChoice) -> list[tuple[int, int]]:
    """The pairs of a prompt's answers, (chosen, rejected); answers that are equally good make none.

    Args:
        values: how good each answer is, by its place.
        choice: "all": every two. "best_worst": each of the best against each of the worst. "adjacent": each against
            each of the next lower value.
    """
    levels = [list(level) for _, level in groupby(sorted(values, key=lambda a: -values[a]), values.__getitem__)]
    if choice == "best_worst":
        steps = [(levels[0], levels[-1])] if len(levels) > 1 else []
    elif choice == "adjacent":
        steps = list(zip(levels, levels[1:], strict=False))
    else:
        steps = list(combinations(levels, 2))
    return [(chosen, rejected) for better, worse in steps for chosen in better for rejected in worse]
