"""Sets as they are handed to the trainer, to token rows: raw or tokenized ones, whole or streamed."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..config import SimPOConfig
from ..errors import SimPOError
from ..log import get_logger
from .drops import DropReport
from .pair_tokenizer import TOKEN_COLUMNS
from .tokenization import check_token_rows, describe_rows, tokenize_preferences, tokenize_stream

logger = get_logger(__name__)


@dataclass
class TokenSet:
    """Token rows, the tokens that the longest has (or may have, if streamed), and the report of their tokenization."""

    rows: Any
    longest: int
    report: DropReport | None = None
    streamed: bool = False


def token_set(dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, args: SimPOConfig) -> TokenSet:
    """The token rows of a set, which is tokenized unless its rows are token ids already.

    Args:
        dataset: a `datasets.Dataset` or a list of rows; to train on, also a `datasets.IterableDataset`.
        name: what messages call the set; "train" for the one that is trained on.

    Raises:
        SimPOError: the set is of another kind, is empty, or its rows cannot be used.
    """
    if not hasattr(dataset, "__len__"):
        return _streamed(dataset, name, tokenizer, args)
    if not len(dataset):
        raise SimPOError(f"The {name} set has no rows; it needs at least one preference pair.")
    if isinstance(dataset, list):
        dataset = Dataset.from_list(dataset, on_mixed_types="use_json")  # a message keeps the keys it has
    if set(getattr(dataset, "column_names", None) or dataset[0]) >= set(TOKEN_COLUMNS):
        return TokenSet(dataset, check_token_rows(dataset, args.max_length, name))
    with args.main_process_first(desc=f"tokenizing the {name} set"):
        rows, report = tokenize_preferences(
            dataset, tokenizer, num_proc=args.dataset_num_proc, name=name, **_settings(args)
        )
    logger.info(report.summary())
    if name == "train":
        logger.info(describe_rows(rows, tokenizer))
    return TokenSet(rows, report.longest, report)


def spread_rows(dataset: Any, count: int) -> Any:
    """At most `count` rows of a set, at even distances."""
    count = min(count, len(dataset))
    places = [place * len(dataset) // count for place in range(count)]
    return dataset.select(places) if isinstance(dataset, Dataset) else [dataset[place] for place in places]


def token_lengths(dataset: Any) -> np.ndarray:
    """Tokens of prompt, chosen and rejected answer of each row, (rows, 3)."""
    if not isinstance(dataset, Dataset):
        return np.array([[len(row[name]) for name in TOKEN_COLUMNS] for row in dataset])
    columns = dataset.select_columns(list(TOKEN_COLUMNS)).with_format("arrow")
    parts = [  # counted where the ids lie, a piece at a time
        np.stack([pc.list_value_length(table[name]).to_numpy() for name in TOKEN_COLUMNS], axis=1)
        for table in columns.iter(batch_size=10_000)
    ]
    return np.concatenate(parts)


def _settings(args: SimPOConfig) -> dict[str, Any]:
    names = ["max_length", "max_prompt_length", "overlong"]
    names += ["truncation_mode", "system_messages", "auto_insert_empty_system_msg"]
    return {name: getattr(args, name) for name in names}


def _streamed(dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, args: SimPOConfig) -> TokenSet:
    if not isinstance(dataset, IterableDataset):
        raise SimPOError(
            f"The {name} set is a {type(dataset).__name__} without a length. Pass a datasets.Dataset, or to train on "
            "also a datasets.IterableDataset (load_dataset(..., streaming=True))."
        )
    if name != "train":
        raise SimPOError(
            f"The {name} set is a stream; an evaluation needs the same pairs every time. Pass a datasets.Dataset, such as "
            "Dataset.from_list(list(stream.take(1000)))."
        )
    if args.max_steps <= 0:
        raise SimPOError(
            "The training set is a stream, whose length is unknown, so num_train_epochs does not say when to stop. Set "
            "max_steps to the number of optimiser steps."
        )
    rows = tokenize_stream(dataset, tokenizer, name=name, **_settings(args))
    shown = [row for row in islice(rows, 50) if row.get("reason") is None][:2]
    if shown and "row" in shown[0]:
        logger.info(describe_rows(shown, tokenizer))
    return TokenSet(rows, args.max_length, streamed=True)
