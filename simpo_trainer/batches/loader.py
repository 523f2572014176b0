"""One process's share of a set or a stream of token rows, and the loader of its micro-batches."""

from collections.abc import Callable
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from datasets import IterableDataset
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ..errors import SimPOError
from ..log import get_logger
from ..tokens.ids import TokenIds
from ..tokens.rows import is_ranked
from ..tokens.sets import columns_of, pair_counts, token_lengths
from ..tokens.settings import RowSettings
from .batch import Batch
from .order import DrawnPairs, PairBatchSampler
from .stream import StreamedPairs
from .workers import shield_workers

logger = get_logger(__name__)

Collator: TypeAlias = Callable[[list[dict[str, Any]]], Batch]


def training_pairs(
    dataset: Any,
    rows: RowSettings,
    args: TrainingArguments,
    batch_size: int,
    accelerator: Accelerator,
    token_ids: TokenIds,
) -> PairBatchSampler | StreamedPairs:
    """Which rows of a training set, or a stream, this process takes at each micro-step of `batch_size` rows.

    Args:
        rows: the settings of the rows of a stream.
        args: seed, accumulation and what to do with an incomplete step.
        token_ids: checks the rows of a stream; those of a set have been checked.
    """
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "num_processes": accelerator.num_processes,
        "process_index": accelerator.process_index,
        "accumulation": args.gradient_accumulation_steps,
    }
    if isinstance(dataset, IterableDataset):
        ranked = is_ranked(columns_of(dataset))
        shared |= {"max_length": rows.max_length, "overlong": rows.overlong, "ranked": ranked}
        shared["on_bad_row"] = rows.on_bad_row
        return StreamedPairs(dataset, **shared, token_ids=token_ids)
    seed = args.seed if args.data_seed is None else args.data_seed
    return PairBatchSampler(
        len(dataset),
        **shared,
        seed=seed,
        drop_last=args.dataloader_drop_last,
        lengths=_lengths(dataset),
        pair_counts=pair_counts(dataset),
    )


def evaluation_pairs(dataset: Any, args: TrainingArguments, accelerator: Accelerator) -> PairBatchSampler:
    """Which rows of an evaluation set this process takes at each micro-step."""
    return PairBatchSampler(
        len(dataset),
        batch_size=args.eval_batch_size,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        lengths=_lengths(dataset),
    )


def _lengths(dataset: Any) -> list[int]:
    """Tokens of each row, its prompt counted once."""
    prompt, answers, _ = token_lengths(dataset).T
    return (prompt + answers).tolist()


def pair_loader(
    dataset: Any, pairs: PairBatchSampler | StreamedPairs, collator: Collator, args: TrainingArguments
) -> DataLoader:
    """Loader of one process's micro-batches, with the worker settings of `args`.

    Raises:
        SimPOError: the sampler has no micro-step, because an incomplete one is dropped.
    """
    settings: dict[str, Any] = {
        "collate_fn": collator,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }
    if isinstance(pairs, StreamedPairs):
        if args.dataloader_num_workers > 1:
            # `datasets` would give each worker other files of the stream, and its micro-batches would be other pairs.
            logger.warning(f"A stream is read by one worker, not {args.dataloader_num_workers}.")
            settings["num_workers"] = 1
        loader: DataLoader = DataLoader(pairs, batch_size=None, **settings)
    elif len(pairs):
        loader = DataLoader(DrawnPairs(dataset), batch_sampler=pairs, **settings)
    else:
        raise SimPOError(
            f"dataloader_drop_last leaves nothing to train on: the set has {len(dataset)} rows, and an optimiser step "
            f"takes {pairs.rows_per_step * pairs.accumulation}. Leave dataloader_drop_last out."
        )
    # The process is known to sampler and stream already: prepared as if for one, batches are not dealt out again.
    return shield_workers(prepare_data_loader(loader, num_processes=1, process_index=0))
