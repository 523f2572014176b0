"""Rows of token ids, as the collator takes them: a pair, or a prompt with ranked answers and the pairs made of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
# `chosen` and `rejected` hold indices in `response_ids`, one each for every pair.
RANKED_TOKEN_COLUMNS = ("prompt_ids", "response_ids", "chosen", "rejected")
# Rows of one text; tokens that are not trained on have the label -100.
LABELLED_COLUMNS = ("input_ids", "labels")


def token_columns(columns: Iterable[str]) -> tuple[str, ...] | None:
    """The columns that make rows token rows, ranked or pairs; None where they are none."""
    return next((kind for kind in (TOKEN_COLUMNS, RANKED_TOKEN_COLUMNS) if set(columns) >= set(kind)), None)


def id_columns(columns: Iterable[str]) -> list[str]:
    """Those of a set's columns that hold the ids of its texts."""
    if is_ranked(columns):
        return ["prompt_ids", "response_ids"]
    return list(TOKEN_COLUMNS) if token_columns(columns) else ["input_ids"]


def is_ranked(row: Iterable[str]) -> bool:
    """Returns whether a token row, or a set with these columns, has ranked answers."""
    return "response_ids" in row


def row_answers(row: Mapping[str, Any]) -> list[list[int]]:
    """The answers of a token row: chosen and rejected of a pair, or the ranked ones."""
    return row["response_ids"] if is_ranked(row) else [row["chosen_ids"], row["rejected_ids"]]


def row_pairs(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Returns the pairs of a token row, each as the indices of chosen and rejected in :func:`row_answers`."""
    return list(zip(row["chosen"], row["rejected"], strict=True)) if is_ranked(row) else [(0, 1)]


def row_margins(row: Mapping[str, Any]) -> list[float]:
    """The margin of each pair of a token row that has them."""
    return [float(margin) for margin in (row["margin"] if is_ranked(row) else [row["margin"]])]


def row_length(prompt_ids: Sequence[int], answers: Iterable[Sequence[int]]) -> int:
    """Tokens of a prompt with its longest answer."""
    return len(prompt_ids) + max(map(len, answers))
