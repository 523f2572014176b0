"""Loaders of one process's micro-batches, from a set or a stream of token rows."""

from collections.abc import Callable
from typing import Any, TypeAlias

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from .batching import Batch
from .errors import SimPOError
from .sampler import DrawnPairs, PairBatchSampler
from .streaming import StreamedPairs

Collator: TypeAlias = Callable[[list[dict[str, Any]]], Batch]


def pair_loader(dataset: Any, sampler: PairBatchSampler, collator: Collator, args: TrainingArguments) -> DataLoader:
    """Loader of one process's micro-batches, with the worker settings of `args`.

    Raises:
        SimPOError: the sampler has no micro-step, because an incomplete one is dropped.
    """
    if not len(sampler):
        raise SimPOError(
            f"dataloader_drop_last leaves nothing to train on: the set has {len(dataset)} pairs, and an optimiser step "
            f"takes {sampler.pairs_per_step * sampler.accumulation}. Leave dataloader_drop_last out."
        )
    return _prepared(DataLoader(DrawnPairs(dataset), batch_sampler=sampler, **_loader_settings(collator, args)))


def stream_loader(pairs: StreamedPairs, collator: Collator, args: TrainingArguments) -> DataLoader:
    """Loader of one process's micro-batches from a stream, with the worker settings of `args`."""
    return _prepared(DataLoader(pairs, batch_size=None, **_loader_settings(collator, args)))


def _loader_settings(collator: Collator, args: TrainingArguments) -> dict[str, Any]:
    return {
        "collate_fn": collator,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }


def _prepared(loader: DataLoader) -> DataLoader:
    # The process is known to sampler and stream already: prepared as if for one, batches are not dealt out again.
    return prepare_data_loader(loader, num_processes=1, process_index=0)
