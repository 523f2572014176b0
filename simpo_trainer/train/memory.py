"""The error of a run whose accelerator has too little memory."""

from transformers import TrainingArguments

from ..errors import SimPOError


def out_of_memory(args: TrainingArguments, step: int) -> SimPOError:
    """Returns the error with the settings that need less memory, those that change no optimiser step first.

    Args:
        args: the settings of the run.
        step: optimiser steps that were done.
    """
    micro, changes = args.train_batch_size, []
    if micro > 1:
        fewer = max(size for size in range(1, micro) if micro % size == 0)
        more = (args.gradient_accumulation_steps or 1) * micro // fewer
        kept = "with global_batch_size the accumulation follows"
        if not getattr(args, "global_batch_size", None):
            kept = f"with gradient_accumulation_steps: {more} the steps stay the same"
        changes.append(f"per_device_train_batch_size: {fewer} ({kept})")
    if not args.gradient_checkpointing:
        changes.append("gradient_checkpointing: true")
    changes.append("a smaller max_length, or use_peft: true")
    return SimPOError(
        f"The memory was not enough behind optimiser step {step}, with {micro} rows per device. Set "
        f"{'; or '.join(changes)}."
    )
