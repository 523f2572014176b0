"""Which pairs each process sees at each micro-step: a pure function of seed, epoch and sizes.

The loss of an optimiser step is a mean over the pairs of the global batch, so every split of that batch into
processes, micro-batches and accumulation steps must see the same pairs, and every process must take the same number
of steps, also at an uneven end.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler


class Draw(NamedTuple):
    """One pair to fetch: its place in the data set, and its weight (0 for filler that keeps processes in step)."""

    pair: int
    weight: float


class PairBatchSampler(Sampler[list[Draw]]):
    """Batches of pairs for one process.

    Micro-step k of all processes together takes the next `batch_size * num_processes` pairs of the epoch's order. At
    the end fewer may be left: they are dealt out evenly, and a process that gets none takes one pair with weight 0.

    Args:
        num_pairs: pairs in the data set.
        batch_size: pairs per micro-batch and process.
        num_processes: number of processes.
        process_index: which of them this is.
        seed: seed of the order; unset keeps the data set's own order (evaluation).
        drop_last: leave out an incomplete last global batch.
        accumulation: micro-steps of an optimiser step, which `drop_last` keeps whole.
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
        accumulation: int = 1,
    ):
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.drop_last = drop_last
        self.accumulation = accumulation
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; called by the training loop."""
        self.epoch = epoch

    @property
    def pairs_per_step(self) -> int:
        """Pairs that all processes together take in one micro-step."""
        return self.batch_size * self.num_processes

    @property
    def pairs_per_epoch(self) -> int:
        """Pairs visited in an epoch."""
        return len(self) * self.pairs_per_step if self.drop_last else self.num_pairs

    def pairs_after(self, steps: int) -> int:
        """Pairs visited in the first `steps` optimiser steps of a run."""
        epochs, steps = divmod(steps, -(-len(self) // self.accumulation))
        per_step = self.pairs_per_step * self.accumulation
        return epochs * self.pairs_per_epoch + min(steps * per_step, self.pairs_per_epoch)

    def __len__(self) -> int:
        if self.drop_last:
            return self.num_pairs // (self.pairs_per_step * self.accumulation) * self.accumulation
        return -(-self.num_pairs // self.pairs_per_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order()
        for step in range(len(self)):
            taken = order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
            mine = [Draw(index, 1.0) for index in self._deal(taken)]
            yield mine or [Draw(taken[0], 0.0)]

    def _order(self) -> list[int]:
        if self.seed is None:
            return list(range(self.num_pairs))
        # An odd multiplier keeps (seed, epoch) apart: seed 1 epoch 1 is not seed 2 epoch 0.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.num_pairs, generator=generator).tolist()

    def _deal(self, taken: list[int]) -> list[int]:
        """This process's share of a micro-step's pairs: equal shares, the first processes one more at an uneven end."""
        share, extra = divmod(len(taken), self.num_processes)
        start = self.process_index * share + min(self.process_index, extra)
        return taken[start : start + share + (self.process_index < extra)]


class DrawnPairs(Dataset):
    """A data set that is indexed by :class:`Draw` and passes the weight on to the collator."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"row": draw.pair, **self.dataset[draw.pair], "weight": draw.weight}

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """Fetch a batch at once, which a `datasets.Dataset` does much faster than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[draw] for draw in draws]
        rows = self.dataset.__getitems__([draw.pair for draw in draws])
        return [{"row": draw.pair, **row, "weight": draw.weight} for row, draw in zip(rows, draws, strict=True)]
