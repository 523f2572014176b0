"""Fingerprints: equal data, tokenizers and texts have equal fingerprints on any machine."""

import hashlib
import json
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.stream_files import stream_fingerprint
from ..tokens.rows import LABELLED_COLUMNS, token_columns


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash that is equal for tokenizers that split texts in the same way, wherever they were loaded from."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Earlier calls set these; they do not describe the tokenizer.
        state |= {"padding": None, "truncation": None}
    else:
        state = [tokenizer.get_vocab(), {str(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}]
    return sha256_of([type(tokenizer).__name__, state, tokenizer.special_tokens_map])


def rows_fingerprint(dataset: Any) -> str | None:
    """Returns a hash of the token ids of a set in their order, equal on any machine.

    Of a stream it is the hash of its files and of what is read of them; None for one that a program handed over.
    """
    if not isinstance(dataset, Dataset):
        return stream_fingerprint(dataset)
    digest = hashlib.sha256()
    names = token_columns(dataset.column_names) or LABELLED_COLUMNS
    for batch in dataset.select_columns(list(names)).with_format("arrow").iter(batch_size=10_000):
        for name in names:
            column = batch[name].combine_chunks()
            while hasattr(column, "value_lengths"):  # a list in each row, of ids or of answers
                digest.update(_int32(column.value_lengths()))
                column = column.flatten()
            digest.update(_int32(column))
    return digest.hexdigest()


def row_hashes(dataset: Any) -> np.ndarray | None:
    """Returns a hash of the token ids of each row of a set, (rows,); None for a stream."""
    if not isinstance(dataset, Dataset):
        return None
    names = token_columns(dataset.column_names) or LABELLED_COLUMNS
    found: list[int] = []
    for batch in dataset.select_columns(list(names)).with_format("arrow").iter(batch_size=10_000):
        for columns in zip(*(_rows_in_bytes(batch[name].combine_chunks()) for name in names), strict=True):
            found.append(int.from_bytes(hashlib.sha256(b"".join(columns)).digest()[:8], "little"))
    return np.array(found, dtype=np.uint64)


def _rows_in_bytes(column: Any) -> list[bytes]:
    """Returns the ids of each row of a column of lists, or of lists of lists, behind the lengths of the lists."""
    ends, values = column.offsets.to_numpy(), column.values
    parts = [[length.tobytes() for length in np.diff(ends)]]
    while hasattr(values, "value_lengths"):
        parts.append(_cut(values.value_lengths().to_numpy(), ends))
        ends, values = values.offsets.to_numpy()[ends], values.values
    parts.append(_cut(values.to_numpy(zero_copy_only=False), ends))
    return [b"".join(row) for row in zip(*parts, strict=True)]


def _cut(numbers: Any, ends: Any) -> list[bytes]:
    return [numbers[start:end].astype("<i4").tobytes() for start, end in pairwise(ends)]


def _int32(values: Any) -> bytes:
    return values.to_numpy(zero_copy_only=False).astype("<i4").tobytes()


def sha256_of(value: Any) -> str:
    """Returns the hash of a value as JSON; values that JSON cannot hold are hashed as text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
