"""The prompts of a recipe's data: of rows that have nothing else, of conversations, and of preference rows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ..data.drops import REASONS, Dropped, RowDropped
from ..data.fields import PAIR_FIELDS, RANKED_FIELDS
from ..data.formats import to_pairs
from ..data.load import load_training_rows
from ..data.messages import Message, check_prompt, explicit_prompt, row_template_kwargs, without_filled_keys
from ..data.places import find_place, value_at
from ..data.recognition import HIDDEN_PROMPTS, MESSAGE_COLUMNS
from ..data.settings import DataConfig
from ..data.turns import message_of, written_messages
from ..errors import SimPOError
from ..log import get_logger
from .requests import Prompt

logger = get_logger(__name__)

# Columns that make a row one of preferences, by the names of files or of `columns`.
_ANSWERS = ("chosen", "rejected", "responses", "answers", "better")
# Columns whose content is in the prompt, or would be taken for part of a row to train on.
_USED = {*PAIR_FIELDS, *RANKED_FIELDS, *MESSAGE_COLUMNS, "instruction", "input", "system"}
# Columns that rows of answers have themselves.
_OWN = {"key", "answers", "finish_reasons", "token_counts", "seeds", "chosen_score", "rejected_score"}


@dataclass
class Prompts:
    """The different prompts of a recipe's data, sorted by their hashes, and the counts of the rows."""

    prompts: list[Prompt]
    rows: int
    dropped: dict[str, Dropped] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Returns the number of rows whose prompt an earlier row has too."""
        return self.rows - len(self.prompts) - sum(each.count for each in self.dropped.values())


def load_prompts(config: DataConfig) -> Prompts:
    """Load the prompts of the training sources of a recipe; equal ones once.

    A text is what the user says. The last turn of a conversation is left out where it is an answer. Of rows with equal
    prompts, the other columns of that row are kept which come first as text, so that the order of rows does not matter.

    Raises:
        SimPOError: as `load_preferences`, of sources; there is no prompt in a column; or no row has one that can be
            answered.
    """
    return read_prompts(load_training_rows(config), config)


def read_prompts(sets: Mapping[str, Dataset], config: DataConfig) -> Prompts:
    """Returns the prompts of rows like :func:`load_prompts`.

    Args:
        sets: the rows, by the name that messages call each set.
        config: tells where in them the prompts are.
    """
    found: dict[str, Prompt] = {}
    dropped: dict[str, Dropped] = {}
    count, texts = 0, 0
    for name, rows in sets.items():
        for row, (value, columns) in enumerate(_values(rows, config, name)):
            count += 1
            try:
                prompt, is_text = _prompt(value, columns)
            except RowDropped as problem:
                detail = f"{name}, row {row}" + f": {problem.detail}" * bool(problem.detail)
                dropped.setdefault(problem.reason, Dropped(0, row, detail)).count += 1
                continue
            texts += is_text
            other = found.get(prompt.hash)
            if other is None or _as_text(prompt.columns) < _as_text(other.columns):
                found[prompt.hash] = prompt
    for reason, each in dropped.items():
        logger.warning(f"Left out {each.count} rows (first: {each.detail}): {REASONS[reason][0]}. {REASONS[reason][1]}")
    if not found:
        raise SimPOError(f"None of {count} rows has a prompt that can be answered; the reasons stand above.")
    prompts = Prompts([found[key] for key in sorted(found)], count, dropped)
    again = f"; {prompts.repeated} rows repeat a prompt, which is answered once" if prompts.repeated else ""
    said = f"; {texts} are texts, each taken for what the user says" if texts else ""
    logger.info(f"{len(found):,} prompts of {count:,} rows{again}{said}.")
    return prompts


def _values(rows: Dataset, config: DataConfig, name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields of each row the value of its prompt, or why it has none, and all columns of the row.

    Objects keep the keys of their prompt and its arguments that are their own; those of other columns keep every null.
    """
    columns = config.columns or {}
    raw = rows.with_format(None)
    if any(column in rows.features or column in columns for column in _ANSWERS):
        pairs = to_pairs(rows, columns, config.dataset_format, name)
        for row, pair in zip(raw, pairs.with_format(None), strict=True):
            own = without_filled_keys(pair, pairs.features)
            yield _of_preferences(own), row | _arguments(own)
        return
    place = _place(rows, columns, name)
    for row in raw:
        own = without_filled_keys(row, rows.features)
        yield _alone(own, value_at(own, place), place[0]), row | _arguments(own)


def _place(rows: Dataset, columns: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Returns the place of the prompt in rows without answers."""
    if "prompt" in columns:
        return find_place(rows, columns["prompt"], "prompt", name).steps
    for column in ("prompt", "messages", "conversations", "conversation", "instruction"):
        if column in rows.features:
            return (column,)
    likely = [column for column in HIDDEN_PROMPTS if column in rows.features]
    guess = likely[0] if likely else "ITS_COLUMN"
    raise SimPOError(
        f"{name}: no column 'prompt' or 'messages'; the columns are {', '.join(map(repr, rows.features))}. Name the "
        f"one that holds the prompts: columns: {{prompt: {guess}}}."
    )


def _of_preferences(row: Mapping[str, Any]) -> Any:
    """Returns the prompt of a pair or of ranked answers, or why it has none."""
    if "responses" in row or "prompt" in row:
        return row.get("prompt")
    try:
        return explicit_prompt(row)[0]
    except RowDropped as dropped:
        return dropped


def _arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}


def _alone(row: Mapping[str, Any], value: Any, column: str) -> Any:
    """Returns the prompt of a row without answers: with its system message, and without an answer at its end."""
    if column == "instruction" and isinstance(value, str) and isinstance(row.get("input"), str) and row["input"]:
        value = f"{value}\n{row['input']}"
    messages = _messages(value)
    if isinstance(messages, list) and column != "prompt":
        while messages and messages[-1].get("role") == "assistant":
            messages.pop()
    system = row.get("system")
    if isinstance(system, str) and system.strip() and isinstance(value, str | list):
        first = messages if isinstance(messages, list) else [{"role": "user", "content": messages}]
        if not first or first[0].get("role") != "system":
            return [{"role": "system", "content": system}, *first]
    return messages


def _messages(value: Any) -> Any:
    """Returns a conversation as messages, also one that is written as text; anything else as it is."""
    if isinstance(value, str):
        return written_messages(value) or value
    if isinstance(value, dict):
        return [message_of(value)]
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return [message_of(turn) for turn in value]
    return value


def _prompt(value: Any, row: Mapping[str, Any]) -> tuple[Prompt, bool]:
    """Returns the prompt of a row, and whether it was a text.

    Raises:
        RowDropped: the row has none that can be answered.
    """
    if isinstance(value, RowDropped):
        raise value
    if value is None or value == "":
        raise RowDropped("no_prompt")
    is_text = isinstance(value, str)
    if not isinstance(value, str | list):
        raise RowDropped("wrong_type", type(value).__name__)
    messages: list[Message] = [{"role": "user", "content": value}] if isinstance(value, str) else value
    check_prompt(messages)
    if all(message["role"] != "user" for message in messages):
        raise RowDropped("no_user_turn")
    columns = {name: _plain(item) for name, item in row.items() if name not in _USED | _OWN}
    return Prompt(messages, row_template_kwargs(row), columns), is_text


def _plain(value: Any) -> Any:
    """Returns a value of another column as JSON can hold it."""
    return json.loads(json.dumps(value, default=str))


def _as_text(columns: Mapping[str, Any]) -> str:
    return json.dumps(columns, sort_keys=True)
