"""Convert our token rows into rows for trl's trainers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..data.media import media_error, media_part, refuse_media
from ..data.messages import settle_system_messages
from ..data.written import read_messages
from ..errors import SimPOError
from ..tokens.rows import LABELLED_COLUMNS, TOKEN_COLUMNS, is_ranked
from ..tokens.settings import RowSettings
from ..tokens.tokenization import opening_messages

_IDS = List(Value("int32"))
_PAIRS = Features(dict.fromkeys(TOKEN_COLUMNS, _IDS))
_LABELLED = Features(dict.fromkeys(LABELLED_COLUMNS, _IDS))
# The label of a token without loss, in all libraries.
IGNORED = -100


def pair_rows(tokens: Dataset) -> Dataset:
    """Returns token rows as pairs of `prompt_ids`, `chosen_ids` and `rejected_ids` only; ranked rows give several."""
    if not is_ranked(tokens.column_names):
        return tokens.select_columns(list(TOKEN_COLUMNS))
    return tokens.map(
        _two_by_two, batched=True, remove_columns=tokens.column_names, features=_PAIRS, desc="Pairs of ranked answers"
    )


def _two_by_two(batch: Mapping[str, list]) -> dict[str, list]:
    rows = zip(*(batch[name] for name in ("prompt_ids", "response_ids", "chosen", "rejected")), strict=True)
    pairs = [
        (prompt, answers[chosen], answers[rejected])
        for prompt, answers, better, worse in rows
        for chosen, rejected in zip(better, worse, strict=True)
    ]
    return {name: [pair[place] for pair in pairs] for place, name in enumerate(TOKEN_COLUMNS)}


def answer_rows(tokens: Dataset, *, with_prompt: bool = False) -> Dataset:
    """Returns rows of `input_ids` and `labels`: each prompt with its chosen answer (the best one of a ranked row).

    Args:
        tokens: pairs or ranked rows.
        with_prompt: whether the prompt is trained on too.
    """
    return tokens.map(
        partial(_labelled, with_prompt=with_prompt),
        remove_columns=tokens.column_names,
        features=_LABELLED,
        desc="Chosen answers",
    )


def _labelled(row: Mapping[str, Any], with_prompt: bool) -> dict[str, list[int]]:
    answer = row["response_ids"][0] if is_ranked(row) else row["chosen_ids"]
    return labelled_text(row["prompt_ids"], answer, with_prompt=with_prompt)


def labelled_text(prompt: list[int], answer: list[int], *, with_prompt: bool = False) -> dict[str, list[int]]:
    """Returns `input_ids` and `labels` of a prompt with an answer; the prompt has labels only if `with_prompt`."""
    return {"input_ids": prompt + answer, "labels": (prompt if with_prompt else [IGNORED] * len(prompt)) + answer}


def conversation_rows(
    dataset: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, settings: RowSettings
) -> Dataset:
    """Returns rows of `messages` with system messages as `settings` asks; trl applies the chat template to them.

    Raises:
        SimPOError: there is no chat template, or a row has no messages, or media beside or in them.
    """
    if not tokenizer.chat_template:
        raise SimPOError(
            f"{name}: the rows are conversations, but the tokenizer has no chat template. Use the tokenizer of a chat "
            "model, or set chat_template."
        )
    dataset = read_messages(refuse_media(dataset, name), name)
    for number, messages in enumerate(dataset["messages"]):
        if not messages:
            raise SimPOError(f"{name}: row {number} has no messages. Remove the row.")
        if part := next(filter(None, (media_part(message.get("content")) for message in messages)), None):
            raise media_error(name, number, f"a content part of the type {part!r}")
    opening = opening_messages(tokenizer) if settings.auto_insert_empty_system_msg else []
    if settings.system_messages == "keep" and not opening:
        return dataset
    return dataset.map(
        lambda row: {"messages": settle_system_messages(row["messages"], settings.system_messages, opening)},
        desc=f"System messages of {name}",
    )


def longest_row(dataset: Dataset) -> int:
    """Returns the number of tokens of the longest row of a set with `input_ids`."""
    tables = dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=10_000)
    return max(pc.max(pc.list_value_length(table["input_ids"])).as_py() for table in tables)
