"""The fields of a row: which columns hold a pair or ranked answers, and what margins must be."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from datasets import Dataset

from ..errors import SimPOError, near

PAIR_FIELDS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin")
RANKED_FIELDS = ("prompt", "responses", "scores", "ranks", "tools", "chat_template_kwargs")
# Says of a row in which column it has media, which makes the row one to drop; made by `media.note_media`.
MEDIA_NOTE = "media_in"
# Says of a row that neither of its answers is better, by the value that tells it; made by `verdicts`.
TIE_NOTE = "tie_told_by"
NOTES = (MEDIA_NOTE, TIE_NOTE)
# Says of a row to evaluate on where it comes from: text, for the report alone.
SOURCE = "source"

# Columns that say how good each answer is.
RANKINGS = ("scores", "ranks")


def check_columns(columns: Sequence[str], name: str, found: Sequence[str] | None = None) -> None:
    """Check that `columns` are those of preference pairs or of ranked answers; messages call the set `name`.

    Of pairs, `prompt` may be missing: then both answers carry the whole conversation, and what they share is the
    prompt. `found` are the columns that messages name, if there were more.

    Raises:
        SimPOError: a column that every row needs is missing, or columns exclude each other.
    """
    read_fields(columns, name)
    found = found or columns
    if has_ranked_answers(columns):
        missing = [] if "prompt" in columns else ["prompt"]
        missing += [] if any(ranking in columns for ranking in RANKINGS) else ["scores"]
        needed = (
            "Ranked answers need 'prompt', 'responses' and 'scores' (higher is better) or 'ranks' (1 is the best); in "
            "a recipe, `columns` says where they are."
        )
    else:
        missing = [column for column in ("chosen", "rejected") if column not in columns]
        needed = (
            "Preference pairs need 'chosen' and 'rejected' (and 'prompt', unless both answers hold the whole "
            "conversation), ranked answers 'prompt', 'responses' and 'scores' or 'ranks'; two answers and a column "
            "that tells the better one are named by `answers` and `better` in `columns`."
        )
    if missing:
        raise SimPOError(
            f"{name}: column {' and '.join(map(repr, missing))} missing; the columns are "
            f"{', '.join(map(repr, found))}. {_remedy(missing, found, needed)}"
        )


# Names that other data sets give to the two answers.
_OTHER_NAMES = {
    "chosen": ("preferred", "accepted", "better", "best", "winner", "win", "positive", "good", "response_j"),
    "rejected": ("dispreferred", "worse", "worst", "loser", "lose", "negative", "bad", "response_k"),
}


def _remedy(missing: Sequence[str], found: Sequence[str], needed: str) -> str:
    """Returns how to name the columns that hold the missing fields, or what else the rows can be trained by."""
    conversation = next((column for column in ("messages", "conversations", "conversation") if column in found), None)
    guesses = _guesses(missing, found)
    if conversation and not guesses:
        renamed = "" if conversation == "messages" else f" (once {conversation!r} is called 'messages')"
        return (
            f"Rows of {conversation!r} alone are one conversation each, with no worse answer to learn from: train on "
            f"them with method: sft (--method sft){renamed}, or choose another dataset."
        )
    places = ", ".join(f"{column}: {guesses.get(column, 'ITS_COLUMN')}" for column in missing)
    return f"Name those that hold them: in a recipe, columns: {{{places}}}; in Python, rename the columns. {needed}"


def _guesses(missing: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """Returns for missing columns those that seem to be meant, by another usual name or by a like spelling."""
    lowered = {name.lower(): name for name in found}
    usual = {column: [lowered[name] for name in _OTHER_NAMES.get(column, ()) if name in lowered] for column in missing}
    guesses = {column: names[0] for column, names in usual.items() if names}
    for column in missing:
        free = [name for name in found if name not in guesses.values()]
        if column not in guesses and (likely := near(column, free)):
            guesses[column] = likely[0]
    return guesses


def check_margins(dataset: Dataset, name: str) -> None:
    """Check that a `margin` column, if there is one, holds a finite number >= 0 in every row.

    Raises:
        SimPOError: naming the first row that does not.
    """
    if "margin" in dataset.column_names:
        for row, margin in enumerate(dataset.with_format(None)["margin"][:]):
            check_margin(margin, row, name)


def check_margin(margin: Any, row: int, name: str) -> None:
    """Check the margin of one row, as :func:`check_margins` does."""
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin) or margin < 0:
        raise SimPOError(
            f"{name}: the margin of row {row} is {margin!r}; it must be a finite number, 0 or above. Correct the "
            "column, or remove or rename it if it is not meant for the loss."
        )


def has_ranked_answers(columns: Collection[str]) -> bool:
    """Returns whether rows with these columns are prompts with ranked answers."""
    return "responses" in columns


def read_fields(columns: Collection[str], name: str) -> tuple[str, ...]:
    """The columns that are read of a set, of those that it has; all others are left out.

    Args:
        columns: those of the set.
        name: what messages call it.

    Raises:
        SimPOError: a ranked set has columns of pairs beside its answers, or two rankings.
    """
    if not has_ranked_answers(columns):
        return tuple(field for field in (*PAIR_FIELDS, *NOTES) if field in columns)
    if pair := [column for column in ("chosen", "rejected") if column in columns]:
        raise SimPOError(
            f"{name}: there is 'responses' beside {' and '.join(map(repr, pair))}; a row holds either ranked answers "
            "or a pair. Remove or rename one of them, or name the one that is meant by `columns`."
        )
    if "margin" in columns:
        raise SimPOError(
            f"{name}: there is a column 'margin' beside 'responses'; the margins of ranked answers come from their "
            "scores or ranks. Set margin_scale instead, and remove or rename the column."
        )
    if all(ranking in columns for ranking in RANKINGS):
        raise SimPOError(
            f"{name}: there is 'scores' (higher is better) beside 'ranks' (lower is better); ranked answers need one "
            "of them. Remove or rename the other, or name the one that is meant by `columns`."
        )
    return tuple(field for field in (*RANKED_FIELDS, MEDIA_NOTE) if field in columns)
