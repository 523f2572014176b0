"""Which rows each process sees at each micro-step: a pure function of seed, epoch and sizes.

The loss of an optimiser step is a mean over the pairs of the global batch, so every split of that batch into
processes, micro-batches and accumulation steps must see the same rows, and every process must take the same number
of steps, also at an uneven end. A row is a pair, or a prompt with its ranked answers and the pairs made of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

# Rows among which those of like length are brought together. Far fewer than a set has, so that what a global batch
# holds stays nearly random; with the paper's global batch of 128, four of them.
_GROUPED_ROWS = 512


class Draw(NamedTuple):
    """One row to fetch: its index in the data set, and its weight (0 for filler that keeps processes in step)."""

    row: int
    weight: float


class PairBatchSampler(Sampler[list[Draw]]):
    """Batches of rows for one process.

    Micro-step k of all processes together takes the next `batch_size * num_processes` rows of the epoch's order. At
    the end fewer may be left: they are dealt out evenly, and a process that gets none takes one row with weight 0.

    Args:
        num_rows: rows in the data set.
        batch_size: rows per micro-batch and process.
        num_processes: number of processes.
        process_index: which of them this is.
        seed: seed of the order; unset keeps the data set's own order (evaluation).
        drop_last: leave out an incomplete last global batch.
        accumulation: micro-steps of an optimiser step, which `drop_last` keeps whole.
        lengths: tokens of each row. Rows of like length then come together: in evaluation over the whole set, in
            training within every few global batches, whose rows depend on the seed, the epoch and the size of a global
            batch alone.
        pair_counts: pairs of each row; unset means one.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
        accumulation: int = 1,
        lengths: Sequence[int] | None = None,
        pair_counts: Sequence[int] | None = None,
    ):
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.drop_last = drop_last
        self.accumulation = accumulation
        self.lengths = lengths
        self.pair_counts = pair_counts
        self.epoch = 0
        self._visited: dict[int, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; called by the training loop."""
        self.epoch = epoch

    @property
    def rows_per_step(self) -> int:
        """Rows that all processes together take in one micro-step."""
        return self.batch_size * self.num_processes

    @property
    def rows_per_epoch(self) -> int:
        """Rows visited in an epoch."""
        return len(self) * self.rows_per_step if self.drop_last else self.num_rows

    def pairs_after(self, steps: int) -> int:
        """Pairs visited in the first `steps` optimiser steps of a run."""
        epochs, steps = divmod(steps, -(-len(self) // self.accumulation))
        rows = min(steps * self.rows_per_step * self.accumulation, self.rows_per_epoch)
        if self.pair_counts is None:
            return epochs * self.rows_per_epoch + rows
        # Which rows are dropped at the end of an epoch is not the same in all.
        return sum(int(self._pairs_visited(epoch)[-1]) for epoch in range(epochs)) + int(
            self._pairs_visited(epochs)[rows]
        )

    def _pairs_visited(self, epoch: int) -> np.ndarray:
        """Pairs of the first 0, 1, 2, ... rows of an epoch."""
        if epoch not in self._visited:
            counts = np.asarray(self.pair_counts)[self._order(epoch)[: self.rows_per_epoch]]
            self._visited[epoch] = np.concatenate([[0], np.cumsum(counts)])
        return self._visited[epoch]

    def __len__(self) -> int:
        if self.drop_last:
            return self.num_rows // (self.rows_per_step * self.accumulation) * self.accumulation
        return -(-self.num_rows // self.rows_per_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order(self.epoch)
        for step in range(len(self)):
            taken = order[step * self.rows_per_step : (step + 1) * self.rows_per_step]
            mine = [Draw(index, 1.0) for index in self._deal(taken)]
            yield mine or [Draw(taken[0], 0.0)]

    def _order(self, epoch: int) -> list[int]:
        if self.seed is None:
            return self._by_length(range(self.num_rows))
        # An odd multiplier keeps (seed, epoch) apart: seed 1 epoch 1 is not seed 2 epoch 0.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        return order if self.lengths is None else self._grouped(order, generator)

    def _by_length(self, rows: Sequence[int]) -> list[int]:
        """The longest first; as they are where lengths are unknown."""
        lengths = self.lengths
        return list(rows) if lengths is None else sorted(rows, key=lambda row: -lengths[row])

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        """The rows of every `_GROUPED_ROWS`, or of one global batch if that is larger, in global batches by length.

        The global batches come in random order, so that long and short ones alternate; the incomplete last one stays.
        """
        size = self.rows_per_step * self.accumulation
        whole = self.num_rows // size * size
        span = -(-_GROUPED_ROWS // size) * size
        batches = []
        for start in range(0, whole, span):
            group = self._by_length(order[start : min(start + span, whole)])
            batches += [group[place : place + size] for place in range(0, len(group), size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [row for number in shuffled for row in batches[number]] + self._by_length(order[whole:])

    def _deal(self, taken: list[int]) -> list[int]:
        """This process's share of a micro-step's rows: every n-th, so that lengths are alike on all processes."""
        return taken[self.process_index :: self.num_processes]


class DrawnPairs(Dataset):
    """A data set that is indexed by :class:`Draw` and passes index and weight on to the collator."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return self._drawn(draw, self.dataset[draw.row])

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """Fetch a batch at once, which a `datasets.Dataset` does much faster than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[draw] for draw in draws]
        rows = self.dataset.__getitems__([draw.row for draw in draws])
        return [self._drawn(draw, row) for row, draw in zip(rows, draws, strict=True)]

    def _drawn(self, draw: Draw, row: dict[str, Any]) -> dict[str, Any]:
        return {"row": draw.row, **row, "index": draw.row, "weight": draw.weight}
