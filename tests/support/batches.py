"""The same batch in other shapes: whatever padding a batch has, its answers score the same."""

from typing import Any, cast

import torch
from torch import Tensor

from simpo_trainer.batches.batch import NOT_SCORED, Batch, PairCollator

# What stands at a padded place of each (R, T) tensor.
_PADDING = {
    "input_ids": 0,
    "attention_mask": 0,
    "position_ids": 0,
    "shift_labels": NOT_SCORED,
    "response_index": 0,
}


def widened(batch: Batch, columns: int, pad_id: int = 0) -> Batch:
    """The batch with `columns` more columns of padding on the right."""

    def widen(name: str, value: Tensor) -> Tensor:
        padding = pad_id if name == "input_ids" else _PADDING[name]
        return torch.cat([value, value.new_full((len(value), columns), padding)], 1)

    return _changed(batch, widen)


def left_padded(batch: Batch) -> Batch:
    """The batch with its padding on the left."""
    width = batch["input_ids"].shape[1]
    shifts = width - batch["attention_mask"].sum(1)

    def shift(name: str, value: Tensor) -> Tensor:
        rows = []
        for row, by in zip(value, shifts.tolist(), strict=True):
            padding = row.new_full((by,), _PADDING[name])
            rows.append(torch.cat([padding, row[: width - by]]))
        return torch.stack(rows)

    return _changed(batch, shift)


class LeftPaddingCollator(PairCollator):
    """Collates as :class:`~simpo_trainer.batches.batch.PairCollator` does, but pads on the left."""

    def __call__(self, pairs: Any) -> Batch:
        return left_padded(super().__call__(pairs))


def _changed(batch: Batch, change: Any) -> Batch:
    return cast(Batch, {key: change(key, value) if key in _PADDING else value for key, value in batch.items()})
