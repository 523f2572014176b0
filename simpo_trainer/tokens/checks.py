"""Rows that came as token ids: whether they can be trained on, found where the ids lie."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..data.fields import check_margin
from ..errors import SimPOError
from .rows import RANKED_TOKEN_COLUMNS, TOKEN_COLUMNS, is_ranked, row_answers, row_length

_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
# Rows that are looked at together.
_PIECE = 10_000


def check_token_rows(dataset: Any, max_length: int, name: str) -> int:
    """Check rows that came as token ids, and return the tokens of the longest prompt + answer.

    Raises:
        SimPOError: a row has an empty prompt or answer, or exceeds `max_length`, or its pairs are not pairs of its
            answers, or a margin is not a finite number >= 0; token rows are trained on as they are.
    """
    if not isinstance(dataset, Dataset):
        return _check_each(enumerate(dataset), max_length, name)
    longest_of = _longest_ranked if is_ranked(dataset.column_names) else _longest_pair
    columns = [
        column for column in (*TOKEN_COLUMNS, *RANKED_TOKEN_COLUMNS, "margin") if column in set(dataset.column_names)
    ]
    rows = dataset.select_columns(list(dict.fromkeys(columns)))
    longest = start = 0
    # No row is made into Python's numbers but those of a piece with a fault, to say which it is.
    for table in rows.with_format("arrow").iter(batch_size=_PIECE):
        found = longest_of(table)
        if found is None or found > max_length:
            piece = rows.with_format(None).select(range(start, start + len(table)))
            found = _check_each(enumerate(piece, start), max_length, name)
        longest, start = max(longest, found), start + len(table)
    return longest


# ---- A piece of a set at once ----


def _longest_pair(table: pa.Table) -> int | None:
    """Tokens of the longest prompt + answer of some pairs; None where a row may be at fault."""
    lengths = _lengths(*(table[column] for column in TOKEN_COLUMNS))
    if lengths is None or ("margin" in table.column_names and not _are_margins(table["margin"])):
        return None
    prompt, chosen, rejected = lengths
    return int((prompt + np.maximum(chosen, rejected)).max())


def _longest_ranked(table: pa.Table) -> int | None:
    """Like :func:`_longest_pair`, for prompts with ranked answers."""
    sizes = _lengths(*(table[column] for column in RANKED_TOKEN_COLUMNS))
    tokens = sizes and _lengths(pc.list_flatten(table["response_ids"]))
    if not sizes or not tokens:
        return None
    prompt, answers, pairs, also_pairs = sizes
    if not np.array_equal(pairs, also_pairs) or not _are_pairs(table, np.repeat(answers, pairs)):
        return None
    if "margin" in table.column_names:
        counts = _lengths(table["margin"])
        if not counts or not np.array_equal(counts[0], pairs) or not _are_margins(pc.list_flatten(table["margin"])):
            return None
    firsts = np.cumsum(answers) - answers  # the first answer of each prompt
    return int((prompt + np.maximum.reduceat(tokens[0], firsts)).max())


def _lengths(*columns: pa.ChunkedArray) -> list[np.ndarray] | None:
    """Returns the lengths of the lists in each column; None where one is empty or missing, or is no list."""
    if any(not isinstance(lists.type, _LISTS) or lists.null_count for lists in columns):
        return None
    lengths = [pc.list_value_length(lists).to_numpy() for lists in columns]
    return None if any(own.min() < 1 for own in lengths) else lengths


def _are_pairs(table: pa.Table, answers: np.ndarray) -> bool:
    """Returns whether chosen and rejected are different indices below `answers`, the count of each pair's prompt."""
    sides = [pc.list_flatten(table[side]) for side in ("chosen", "rejected")]
    if any(side.null_count or not pa.types.is_integer(side.type) for side in sides):
        return False
    chosen, rejected = (side.to_numpy() for side in sides)
    inside = [(side >= 0) & (side < answers) for side in (chosen, rejected)]
    return bool((inside[0] & inside[1] & (chosen != rejected)).all())


def _are_margins(values: pa.ChunkedArray) -> bool:
    """Returns whether all values are finite numbers, 0 or above."""
    if values.null_count or not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        return False
    numbers = values.to_numpy()
    return bool((np.isfinite(numbers) & (numbers >= 0)).all())


# ---- Row by row ----


def _check_each(rows: Iterable[tuple[int, Mapping[str, Any]]], max_length: int, name: str) -> int:
    """Like :func:`check_token_rows`, for rows with their numbers."""
    longest = 0
    for number, row in rows:
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
    """Returns the name of a part of the row without tokens; "" if there is none."""
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
    for better, worse in zip(chosen, rejected, strict=True):
        if not all(index is not None and 0 <= index < count for index in (better, worse)) or better == worse:
            raise SimPOError(
                f"{name}: row {number} has the pair of answers {better} and {worse}; it has {count} answers, and a "
                f"pair is two different indices from 0 to {count - 1} in response_ids. Correct or remove the row."
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
