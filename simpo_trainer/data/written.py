"""Rows whose conversations are written as text, as a CSV file has them: read as messages where that is certain."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json, LargeList, List

from ..errors import SimPOError
from ..log import get_logger
from .messages import shorten
from .places import MESSAGES, SAMPLE
from .recognition import MESSAGE_COLUMNS, Format, is_text
from .sources import Rows, readable_rows
from .turns import looks_written, speaker, written_messages

logger = get_logger(__name__)

# Part of the cache's key: raise it with every change of this file or of turns.py that changes rows.
_CODE_VERSION = 1
_ANSWERS = ("chosen", "rejected", "responses")


def read_written(
    rows: Rows, name: str, columns: Mapping[str, str] | None = None, row_format: Format | None = None
) -> Rows:
    """The rows with messages in place of texts that are lists of messages, and nothing but.

    A row is read so if its prompt and all its answers are messages; where that holds for most rows, or for the answers
    of most rows, so is every such text. A text in such a place that begins as messages do and cannot be read makes its
    row one that tokenization drops. Of a stream the first rows decide.

    Args:
        columns: field to the column that holds it, where its name is another.
        row_format: how the rows are written, where the user says so.

    Raises:
        SimPOError: most rows have messages written as text only in the prompt, or the format asked for has no messages.
    """
    if row_format == "hh_rlhf":
        return rows
    found = _Columns.of(rows, columns or {})
    if not found.looked_at:
        return rows
    tally = _tally(rows, found, name)
    kinds = tally.kinds
    conversations = kinds["conversation"] + kinds["answers"]
    is_set = row_format == "sharegpt" or 2 * conversations > kinds.total()
    if row_format != "sharegpt" and 2 * kinds["prompt"] > kinds.total():
        raise SimPOError(
            f"{name}: the column {found.prompt!r} holds messages written as text, beside answers that are plain texts. "
            f"To make conversations of them, set dataset_format: sharegpt and `columns: {{prompt: {found.prompt}}}` in "
            "a recipe, or write the answers as messages too."
        )
    if is_set and tally.written and row_format in ("alpaca", "chat"):
        raise SimPOError(
            f"{name}: prompts and answers are messages written as text, and dataset_format: {row_format} reads plain "
            "texts. Remove dataset_format."
        )
    _tell(kinds, is_set, tally, name)
    if not tally.written or not (is_set or kinds["conversation"]):
        return rows
    # Types that hold nothing but messages where no text is left: sources that are mixed must have the same ones.
    whole = tuple(column for column in tally.written if is_set and not tally.plain[column])
    work = _ReadWritten(found, tuple(tally.written), whole, is_set)
    made = {column: _made_feature(column == found.responses, column in whole) for column in tally.written}
    rows = rows.with_format(None)
    if isinstance(rows, IterableDataset):
        known = rows.features
        return rows.map(work, batched=True, features=None if known is None else Features(dict(known) | made))
    return rows.map(work, batched=True, features=Features(dict(rows.features) | made), desc=f"Reading {name}")


def read_messages(rows: Rows, name: str) -> Rows:
    """Rows of `messages` without answers to choose from, with messages in place of texts that are lists of them.

    Raises:
        SimPOError: a text in the column is anything else.
    """
    if rows.features is None or not is_text(rows.features["messages"]):
        return rows
    features = Features(dict(rows.features) | {"messages": MESSAGES})
    return rows.map(_ReadMessages(name), with_indices=True, features=features)


@dataclass(frozen=True)
class _ReadMessages:
    """The function that `map` runs; its fields are part of the cache's key."""

    name: str
    version: int = _CODE_VERSION

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        text = row["messages"]
        messages = text and written_messages(text)
        if text and not messages:
            raise SimPOError(
                f"{self.name}: the messages of row {index} are the text {shorten(text)!r}; they must be a list of "
                "{'role': ..., 'content': ...}. Write the rows as JSON Lines or Parquet, or the list as JSON."
            )
        return {"messages": messages or None}


def _made_feature(is_list: bool, is_whole: bool) -> Any:
    feature = MESSAGES if is_whole else Json()
    return List(feature) if is_list else feature


@dataclass(frozen=True)
class _Columns:
    """The columns of prompt and answers; those of them that are `looked_at` may hold texts."""

    prompt: str | None
    answers: tuple[str, ...]
    responses: str | None
    looked_at: tuple[str, ...]

    @classmethod
    def of(cls, rows: Rows, columns: Mapping[str, str]) -> "_Columns":
        features: Mapping[str, Any] = rows.features or dict.fromkeys(next(iter(rows), {}))
        named = {name: columns.get(name, name) for name in ("prompt", *_ANSWERS)}
        answers = tuple(named[side] for side in _ANSWERS if named[side] in features)
        prompts = [named["prompt"], *([] if "prompt" in columns else MESSAGE_COLUMNS)]
        prompt = next((column for column in prompts if column in features), None)
        present = ([prompt] if prompt else []) + list(answers) if answers else []
        looked_at = tuple(column for column in present if rows.features is None or _may_be_text(features[column]))
        return cls(prompt, answers, named["responses"] if named["responses"] in features else None, looked_at)


def _may_be_text(feature: Any) -> bool:
    item = feature.feature if isinstance(feature, List | LargeList) else feature
    return is_text(item) or (isinstance(feature, Json))


@dataclass
class _Tally:
    """Rows by kind; columns with messages written as text; and how many cells of each column are other texts."""

    kinds: Counter[str] = field(default_factory=Counter)
    written: dict[str, None] = field(default_factory=dict)
    plain: Counter[str] = field(default_factory=Counter)
    rows_written: int = 0


def _tally(rows: Rows, columns: _Columns, name: str) -> _Tally:
    tally = _Tally()
    for row in _looked_at(rows, columns, name):
        cells = {column: _cells(row[column]) for column in columns.looked_at}
        kind = _row_kind(row, columns)
        tally.kinds[kind] += 1
        written = [column for column, inside in cells.items() if any(map(_is_written, inside))]
        tally.written |= dict.fromkeys(written)
        tally.rows_written += bool(written)
        for column, inside in cells.items():
            tally.plain[column] += sum(isinstance(cell, str) and not _is_written(cell) for cell in inside)
    return tally


def _looked_at(rows: Rows, columns: _Columns, name: str) -> Iterator[dict[str, Any]]:
    if not isinstance(rows, Dataset):
        with suppress(SimPOError):  # a row that cannot be read is an error when training comes to it
            for row in readable_rows(rows.take(SAMPLE), name):
                yield {column: row.get(column) for column in columns.looked_at}
        return
    read = rows.select_columns(list(columns.looked_at)).with_format(None)
    for batch in read.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _row_kind(row: Mapping[str, Any], columns: _Columns) -> str:
    """Which parts of a row are messages: "conversation" (all), "answers", "prompt" or none, "text".

    Answers that do not belong to their prompt, which is plain text, are "data": what a text asked for. A column that is
    not in the row is not looked at, as it cannot hold texts.
    """
    answers = [cell for column in columns.answers for cell in _cells(row.get(column, []))]
    prompt = row.get(columns.prompt) if columns.prompt else None
    prompt_is = None if prompt is None else _is_conversation(prompt)
    if all(map(_is_conversation, answers)):
        if prompt is None or prompt_is:
            return "conversation"
        return "answers" if all(_belongs(answer, prompt) for answer in answers) else "data"
    return "prompt" if _is_written(prompt) and not any(map(_is_conversation, answers)) else "text"


def _cells(value: Any) -> list[Any]:
    """The texts or conversations in a column: one, or each of the ranked answers."""
    values = value if isinstance(value, list) and any(isinstance(item, str | list) for item in value) else [value]
    return [item for item in values if item is not None]


def _is_conversation(cell: Any) -> bool:
    return not isinstance(cell, str) or _is_written(cell)


def _belongs(answer: Any, prompt: str) -> bool:
    """Returns whether an answer is one assistant message, or a conversation in which the user says the prompt."""
    messages = written_messages(answer) if isinstance(answer, str) else None
    if messages is None:  # a list already, or unread
        return True
    said = [message.get("content") or "" for message in messages if speaker(message) == "user"]
    return any(prompt.strip() in text for text in said) or list(map(speaker, messages)) == ["assistant"]


def _is_written(cell: Any) -> bool:
    return isinstance(cell, str) and (looks_written(cell) or written_messages(cell) is not None)


def _tell(kinds: Counter[str], is_set: bool, tally: _Tally, name: str) -> None:
    """Says what is read as messages, and which rows are left as texts beside conversations."""
    total = kinds.total()
    read = tally.rows_written if is_set else kinds["conversation"] if tally.written else 0
    if read:
        logger.info(f"{name}: messages written as text in {read} of {total} rows; they are read as conversations.")
    if not is_set and (left := kinds["answers"] + kinds["data"]) and tally.written:
        logger.warning(
            f"{name}: the answers of {left} of {total} rows are messages written as text, beside prompts "
            "that are not; they are trained on as the texts that they are. If they are conversations, write "
            "them as lists of messages, in JSON Lines or Parquet."
        )
    conversations = kinds["conversation"] + (kinds["answers"] if is_set else 0)
    if conversations and conversations < total:
        logger.warning(
            f"{name}: {conversations} of {total} rows are conversations, which the chat template writes, and "
            f"{total - conversations} are texts or half of each. Texts are trained on without the template; write all "
            "rows the same way if that is not meant."
        )


@dataclass(frozen=True)
class _ReadWritten:
    """The function that `map` runs; its fields are part of the cache's key."""

    columns: _Columns
    written: tuple[str, ...]
    whole: tuple[str, ...]
    is_set: bool
    version: int = _CODE_VERSION

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        size = len(next(iter(batch.values())))
        rows = [{column: batch[column][place] for column in self.columns.looked_at} for place in range(size)]
        reads = [self.is_set or _row_kind(row, self.columns) == "conversation" for row in rows]
        return {
            column: [
                self._value(row[column], column) if is_read else row[column]
                for row, is_read in zip(rows, reads, strict=True)
            ]
            for column in self.written
        }

    def _value(self, value: Any, column: str) -> Any:
        is_whole = column in self.whole
        if column == self.columns.responses and isinstance(value, list):
            return [_read(cell, is_whole) for cell in value]
        return _read(value, is_whole)


def _read(cell: Any, is_whole: bool) -> Any:
    """A cell as messages; what cannot be read is a list of its text, for which tokenization drops the row."""
    if isinstance(cell, dict) and is_whole:
        return [cell]
    if not isinstance(cell, str):
        return cell
    messages = written_messages(cell)
    return messages or ([cell] if is_whole or looks_written(cell) else cell)
