"""Which pairs each process sees at each micro-step: a pure function of seed, epoch and sizes.

The loss of an optimiser step is a mean over the pairs of the global batch, so every split of that batch into
processes, micro-batches and accumulation steps must see the same pairs, and every process must take the same number
of steps, also at an uneven end.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler

# Pairs among which those of like length are brought together. Far fewer than a set has, so that what a global batch holds
# stays nearly random; with the paper's global batch of 128, four of them.
_GROUPED_PAIRS = 512


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
        lengths: tokens of each pair. Pairs of like length then come together: in evaluation over the whole set, in
            training within every few global batches, whose pairs depend on the seed, the epoch and the size of a global
            batch alone.
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
        lengths: Sequence[int] | None = None,
    ):
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.drop_last = drop_last
        self.accumulation = accumulation
        self.lengths = lengths
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
            return self._by_length(range(self.num_pairs))
        # An odd multiplier keeps (seed, epoch) apart: seed 1 epoch 1 is not seed 2 epoch 0.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_pairs, generator=generator).tolist()
        return order if self.lengths is None else self._grouped(order, generator)

    def _by_length(self, pairs: Sequence[int]) -> list[int]:
        """The longest first; as they are where lengths are unknown."""
        return list(pairs) if self.lengths is None else sorted(pairs, key=lambda pair: -self.lengths[pair])  # type: ignore[index]

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        """The pairs of every `_GROUPED_PAIRS`, or of one global batch if that is larger, in global batches by length.

        The global batches come in random order, so that long and short ones alternate; the incomplete last one stays.
        """
        size = self.pairs_per_step * self.accumulation
        whole = self.num_pairs // size * size
        span = -(-_GROUPED_PAIRS // size) * size
        batches = []
        for start in range(0, whole, span):
            group = self._by_length(order[start : min(start + span, whole)])
            batches += [group[place : place + size] for place in range(0, len(group), size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [pair for number in shuffled for pair in batches[number]] + self._by_length(order[whole:])

    def _deal(self, taken: list[int]) -> list[int]:
        """This process's share of a micro-step's pairs: every n-th, so that lengths are alike on all processes."""
        return taken[self.process_index :: self.num_processes]


class DrawnPairs(Dataset):
    """A data set that is indexed by :class:`Draw` and passes place and weight on to the collator."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return self._drawn(draw, self.dataset[draw.pair])

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """Fetch a batch at once, which a `datasets.Dataset` does much faster than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[draw] for draw in draws]
        rows = self.dataset.__getitems__([draw.pair for draw in draws])
        return [self._drawn(draw, row) for row, draw in zip(rows, draws, strict=True)]

    def _drawn(self, draw: Draw, row: dict[str, Any]) -> dict[str, Any]:
        return {"row": draw.pair, **row, "place": draw.pair, "weight": draw.weight}
