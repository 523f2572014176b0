"""Data sets as users hand them over, raw or tokenized, whole or streamed, become sets of token rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..data.drops import DropReport
from ..data.fields import SOURCE, has_ranked_answers
from ..data.sources import readable_rows
from ..errors import SimPOError
from ..log import get_logger
from .checks import check_token_rows
from .rows import TOKEN_COLUMNS, id_columns, is_ranked, row_answers, token_columns
from .settings import RowSettings
from .shown import describe_rows
from .tokenization import tokenize_preferences, tokenize_stream

logger = get_logger(__name__)

_USUAL = vars(RowSettings())


@dataclass(frozen=True)
class TokenSet:
    """A set or a stream of token rows.

    Args:
        name: name of the set in messages.
        rows: the token rows.
        longest: tokens of the longest prompt + answer; of a stream, those that it may have.
        report: counts of the tokenization; None where rows came as token ids, and for a stream.
        streamed: whether it is a stream.
    """

    name: str
    rows: Any
    longest: int
    report: DropReport | None = None
    streamed: bool = False

    def source_row(self, index: int) -> int:
        """Returns the number that a token row has in the user's own data."""
        return self.rows[index]["row"] if self.report else index


def token_set(
    dataset: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    *,
    num_proc: int | None = None,
) -> TokenSet:
    """The token rows of a set, which is tokenized unless its rows are token ids already.

    Args:
        dataset: a `datasets.Dataset`, a list of rows, or a `datasets.IterableDataset`, which is trained on as it is
            read; one to evaluate on must have an end, is read once and kept.
        name: name of the set in messages; "train" for the one that is trained on.
        num_proc: processes that tokenize; None means this one.

    Raises:
        SimPOError: the set is of another kind, is empty, or its rows cannot be used.
    """
    _check_kind(dataset, name)
    if isinstance(dataset, IterableDataset) and name == "train":
        return _streamed(dataset, name, tokenizer, settings)
    if isinstance(dataset, IterableDataset):
        dataset = _kept(dataset, name)
    if not len(dataset):
        raise SimPOError(f"The {name} set has no rows; it needs at least one preference pair.")
    if isinstance(dataset, list):
        dataset = Dataset.from_list(dataset, on_mixed_types="use_json")  # a message keeps the keys it has
    columns = columns_of(dataset)
    _say_unread_settings(columns, name, settings)
    if token_columns(columns):
        return TokenSet(name, dataset, check_token_rows(dataset, settings.max_length, name))
    rows, report = tokenize_preferences(dataset, tokenizer, settings, num_proc=num_proc, name=name)
    if name == "train":
        logger.info(describe_rows(rows, tokenizer))
    return TokenSet(name, rows, report.longest, report)


def spread_rows(dataset: Any, count: int) -> Any:
    """Returns at most `count` rows of a set, at even distances."""
    count = min(count, len(dataset))
    chosen = [number * len(dataset) // count for number in range(count)]
    return dataset.select(chosen) if isinstance(dataset, Dataset) else [dataset[index] for index in chosen]


def columns_of(dataset: Any) -> list[str]:
    """Returns the columns of a set or a stream, or the keys of its first row where it does not know its columns."""
    return list(getattr(dataset, "column_names", None) or next(iter(dataset)))


def token_lengths(dataset: Any) -> np.ndarray:
    """Returns tokens of the prompt, tokens of all answers, and number of answers of each token row, (rows, 3)."""
    if not isinstance(dataset, Dataset):
        answers = [[len(ids) for ids in row_answers(row)] for row in dataset]
        return np.array([[len(row["prompt_ids"]), sum(a), len(a)] for row, a in zip(dataset, answers, strict=True)])
    count = _ranked_lengths if is_ranked(dataset.column_names) else _pair_lengths
    tables = dataset.select_columns(id_columns(dataset.column_names)).with_format("arrow").iter(batch_size=10_000)
    return np.concatenate([count(table) for table in tables])  # where the ids lie, a piece at a time


def _pair_lengths(table: pa.Table) -> np.ndarray:
    prompt, chosen, rejected = (pc.list_value_length(table[name]).to_numpy() for name in TOKEN_COLUMNS)
    return np.stack([prompt, chosen + rejected, np.full_like(prompt, 2)], axis=1)


def _ranked_lengths(table: pa.Table) -> np.ndarray:
    prompt, answers = (pc.list_value_length(table[name]).to_numpy() for name in ("prompt_ids", "response_ids"))
    tokens = pc.list_value_length(pc.list_flatten(table["response_ids"])).to_numpy()
    before = np.concatenate([[0], np.cumsum(tokens)])  # tokens of all answers in front of each
    ends = np.cumsum(answers)
    return np.stack([prompt, before[ends] - before[ends - answers], answers], axis=1)


def pair_counts(dataset: Any) -> list[int] | None:
    """Returns the number of pairs in each row of a ranked set; None for a set of pairs, which has one in each."""
    if not is_ranked(columns_of(dataset)):
        return None
    if not isinstance(dataset, Dataset):
        return [len(row["chosen"]) for row in dataset]
    tables = dataset.select_columns(["chosen"]).with_format("arrow").iter(batch_size=10_000)
    return [count for table in tables for count in pc.list_value_length(table["chosen"]).to_pylist()]


def count_pairs(dataset: Any) -> int | None:
    """Returns the number of pairs in a set, more than its rows where answers are ranked; None for a stream."""
    if not hasattr(dataset, "__len__"):
        return None
    counts = pair_counts(dataset)
    return len(dataset) if counts is None else sum(counts)


def pair_sources(dataset: Any) -> list[str] | None:
    """Returns where each pair of a token set comes from; None for a set that does not say."""
    if not isinstance(dataset, Dataset) or SOURCE not in dataset.column_names:
        return None
    counts = pair_counts(dataset) or [1] * len(dataset)
    sources = [source or "unknown" for source in dataset[SOURCE]]
    return [source for source, count in zip(sources, counts, strict=True) for _ in range(count)]


def _say_unread_settings(columns: list[str], name: str, settings: RowSettings) -> None:
    """Warn of settings for ranked answers where the training set has none to make pairs of."""
    given = [
        f"{key} is {value}" for key in ("pairs", "margin_scale") if (value := getattr(settings, key)) != _USUAL[key]
    ]
    if given and name == "train" and not has_ranked_answers(columns):
        logger.warning(
            f"{' and '.join(given)}, but the rows of the train set are no ranked answers to make pairs of: it does "
            "nothing there. Leave it out, or use rows with the column 'responses'."
        )


def _check_kind(dataset: Any, name: str) -> None:
    """Refuse an object that is no set of rows.

    Raises:
        SimPOError: names its type, and those that are accepted.
    """
    if isinstance(dataset, Dataset | IterableDataset):
        return
    if not isinstance(dataset, Mapping | str) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        try:
            if not len(dataset) or isinstance(dataset[0], Mapping):
                return
        except LookupError:  # it has items, but no first one
            pass
    raise SimPOError(
        f"The {name} set must be a `Dataset` or an `IterableDataset` of the library datasets, or a list of dicts; "
        f"found {type(dataset).__name__}. Make one, as by load_dataset, Dataset.from_list or Dataset.from_pandas."
    )


def _kept(stream: IterableDataset, name: str) -> Dataset:
    """Returns all rows of a stream, because an evaluation needs the same pairs every time."""
    rows = list(readable_rows(stream, name))
    logger.info(f"{name}: the stream was read once; its {len(rows)} rows are kept in memory.")
    if stream.features:
        return Dataset.from_list(rows, features=stream.features)
    return Dataset.from_list(rows, on_mixed_types="use_json")


def _streamed(
    dataset: IterableDataset, name: str, tokenizer: PreTrainedTokenizerBase, settings: RowSettings
) -> TokenSet:
    rows = tokenize_stream(dataset, tokenizer, settings, name=name)
    _say_unread_settings(columns_of(dataset), name, settings)
    shown = [row for row in islice(rows, 50) if row.get("reason") is None][:2]
    if shown and "row" in shown[0]:
        logger.info(describe_rows(shown, tokenizer))
    return TokenSet(name, rows, settings.max_length, streamed=True)
