"""Rows of token ids, as the collator takes them: a pair, or a prompt with ranked answers and the pairs made of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from ..data.fields import check_margin
from ..errors import SimPOError

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
# `chosen` and `rejected` hold places in `response_ids`, one each for every pair.
RANKED_TOKEN_COLUMNS = ("prompt_ids", "response_ids", "chosen", "rejected")
# Rows of one text, of which what is not trained on has the label -100.
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
    """Whether a token row, or a set with these columns, has ranked answers."""
    return "response_ids" in row


def row_answers(row: Mapping[str, Any]) -> list[list[int]]:
    """The answers of a token row: chosen and rejected of a pair, or the ranked ones."""
    return row["response_ids"] if is_ranked(row) else [row["chosen_ids"], row["rejected_ids"]]


def row_pairs(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The pairs of a token row, each as the places of chosen and rejected in :func:`row_answers`."""
    return list(zip(row["chosen"], row["rejected"], strict=True)) if is_ranked(row) else [(0, 1)]


def row_margins(row: Mapping[str, Any]) -> list[float]:
    """The margin of each pair of a token row that has them."""
    return [float(margin) for margin in (row["margin"] if is_ranked(row) else [row["margin"]])]


def row_length(prompt_ids: Sequence[int], answers: Iterable[Sequence[int]]) -> int:
    """Tokens of a prompt with its longest answer."""
    return len(prompt_ids) + max(map(len, answers))


# --- Rows that came as token ids --------------------------------------------------------------------------------------


def check_token_rows(dataset: Any, max_length: int, name: str) -> int:
    """Check rows that came as token ids, and return the tokens of the longest prompt + answer.

    Raises:
        SimPOError: a row has an empty prompt or answer, or exceeds `max_length`, or its pairs are not pairs of its
            answers, or a margin is not a finite number >= 0; token rows are trained on as they are.
    """
    longest = 0
    # As plain values: the set's own format may be that of tensors.
    for number, row in enumerate(dataset.with_format(None) if isinstance(dataset, Dataset) else dataset):
        if empty := _empty_ids(row):
            raise SimPOError(f"{name}: {empty} of row {number} is empty; it needs at least one token. Remove the row.")
        if is_ranked(row):
            _check_ranked_row(row, number, name)
        elif "margin" in row:
            check_margin(row["margin"], number, name)
        longest = max(longest, row_length(row["prompt_ids"], row_answers(row)))
        if longest > max_length:
            raise SimPOError(
                f"{name}: row {number} has {longest} tokens and max_length is {max_length}; rows that come as token "
                "ids are not cut. Raise max_length, or cut the rows."
            )
    return longest


def _empty_ids(row: Mapping[str, Any]) -> str:
    """What of a row has no tokens; "" where all of it has some."""
    ids = {column: row[column] for column in ("prompt_ids", *(() if is_ranked(row) else TOKEN_COLUMNS[1:]))}
    if is_ranked(row):
        ids |= {"response_ids": row["response_ids"]}
        ids |= {f"answer {place} in response_ids": answer for place, answer in enumerate(row["response_ids"] or [])}
    return next((column for column, value in ids.items() if value is None or not len(value)), "")


def _check_ranked_row(row: Mapping[str, Any], number: int, name: str) -> None:
    """Check that the pairs of a ranked row are pairs of its answers."""
    count, chosen, rejected = len(row["response_ids"]), row["chosen"], row["rejected"]
    if not chosen or not rejected or len(chosen) != len(rejected):
        raise SimPOError(
            f"{name}: row {number} has {len(chosen or [])} entries in chosen and {len(rejected or [])} in rejected; "
            "each pair needs one in both, and a row at least one pair. Correct or remove the row."
        )
    for places in zip(chosen, rejected, strict=True):
        if not all(0 <= place < count for place in places) or places[0] == places[1]:
            raise SimPOError(
                f"{name}: row {number} has the pair of answers {places[0]} and {places[1]}; it has {count} answers, "
                f"and a pair is two different places from 0 to {count - 1} in response_ids. Correct or remove the row."
            )
    if "margin" not in row:
        return
    if not isinstance(row["margin"], list) or len(row["margin"]) != len(chosen):
        raise SimPOError(
            f"{name}: the margin of row {number} is {row['margin']!r}; a ranked row needs a list with one number for "
            f"each of its {len(chosen)} pairs. Correct the column, or remove it."
        )
    for margin in row["margin"]:
        check_margin(margin, number, name)
