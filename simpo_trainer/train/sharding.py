"""Engines that split a model over processes: what they must not do to scores, and what cannot be trained under them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..errors import SimPOError

# By the name of its size in accelerate's `ParallelismConfig`.
_TOKENS_SPLIT = {"tp_size": "tensor", "cp_size": "context", "sp_size": "sequence"}
_INSTEAD = (
    "Use fsdp2 or zero3, which split the weights and leave each answer whole; for rows that one accelerator cannot "
    "hold, set gradient_checkpointing: true or a smaller max_length."
)


def parallelism_problem(given: Any, environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the text that refuses tensor, context and sequence parallelism, or None where none of them is set.

    Args:
        given: accelerate's `ParallelismConfig` of the arguments; None for what the launcher set.
        environment: where a launcher sets it.
    """
    sizes = {name: getattr(given, name, 1) or 1 for name in _TOKENS_SPLIT}
    if given is None and environment.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        sizes = {name: int(environment.get(f"PARALLELISM_CONFIG_{name.upper()}", "1")) for name in _TOKENS_SPLIT}
    kinds = [f"{kind} parallelism ({name} {sizes[name]})" for name, kind in _TOKENS_SPLIT.items() if sizes[name] > 1]
    return _refused(" and ".join(kinds)) if kinds else None


def _check_whole_rows(model: Any, accelerator: Accelerator) -> None:
    """Refuse a model and an engine that were made to split the tokens or the layers of a row.

    Raises:
        SimPOError: they do so.
    """
    if (size := getattr(model, "tp_size", None) or 1) > 1:
        raise SimPOError(_refused(f"tensor parallelism (the model was loaded with a tp_plan, over {size} processes)"))
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    settings = getattr(plugin, "deepspeed_config", None) or {}
    if (size := settings.get("tensor_parallel", {}).get("autotp_size", 1)) > 1:
        raise SimPOError(_refused(f"tensor parallelism (DeepSpeed's autotp_size is {size})"))
    if (size := settings.get("sequence_parallel_size", 1)) > 1:
        raise SimPOError(_refused(f"sequence parallelism (DeepSpeed's sequence_parallel_size is {size})"))


def _refused(what: str) -> str:
    return (
        f"{what} is set: it splits each answer, or the head that scores it, between processes, and the trainer would "
        f"take a part of an average log-probability for the whole. {_INSTEAD}"
    )


def settle_sharding(accelerator: Accelerator, model: Any) -> None:
    """Make the engine keep scores exact, and refuse what cannot be trained under it.

    Args:
        accelerator: the trainer's, before it has prepared the model.
        model: to be trained.

    Raises:
        SimPOError: the engine splits rows, or holds in parts what the adapter needs whole.
    """
    _check_whole_rows(model, accelerator)
    _settle_fsdp(accelerator)
    _tell_empty_weights_apart(model)
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    _check_eight_bits(accelerator, model)
    if plugin is not None and plugin.zero_stage == 3:
        _check_zero3(model)
        _gather_head_at_once(model)


def _settle_fsdp(accelerator: Accelerator) -> None:
    """Under FSDP2, reduce the gradients of each micro-batch; with bf16, keep scores and gradients in float32.

    transformers would reduce those of the last micro-batch of a step alone: until then each process holds gradients of
    the whole model, 280 GB at 70B. accelerate's policy casts every output to bfloat16, the summed log-probabilities
    too: -600.3 would become -600.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version == 2:
        accelerator.gradient_state.plugin_kwargs.setdefault("sync_each_batch", True)
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )


def _tell_empty_weights_apart(model: Any) -> None:
    """Give each weight on the device "meta" an address of its own.

    By their addresses accelerate finds the weights of the optimiser again when FSDP2 has split the model. Empty ones
    have all the same, and the process would train one of them and leave the others as they are.
    """
    empty = [weight for weight in model.parameters() if weight.is_meta] if isinstance(model, nn.Module) else []
    for number, weight in enumerate(empty, 1):
        weight.data_ptr = partial(int, -number)  # type: ignore[method-assign]


def _check_eight_bits(accelerator: Accelerator, model: Any) -> None:
    """Refuse 8-bit weights where they are moved or loaded anew: bitsandbytes takes them apart at their first use."""
    if not getattr(model, "is_loaded_in_8bit", False):
        return
    state = accelerator.state
    stage = getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", None)
    if getattr(state, "fsdp_plugin", None) is not None or stage in (1, 2):
        engine = f"DeepSpeed ZeRO-{stage}" if stage else "FSDP"
        raise SimPOError(
            f"load_in_8bit is true under {engine}: bitsandbytes cannot split 8-bit weights, nor load them again into a "
            "model that was used. Use the launcher ddp or zero3, or load_in_4bit: true."
        )


def _check_zero3(model: Any) -> None:
    if isinstance(model, PeftModel) and any(getattr(each, "use_dora", False) for each in model.peft_config.values()):
        raise SimPOError(
            "use_dora is true under DeepSpeed ZeRO-3: DoRA needs the norms of whole weights, and peft reads them where "
            "ZeRO-3 holds them in parts. Use the launcher fsdp2 or zero2, or set use_dora: false."
        )


def _gather_head_at_once(model: Any) -> None:
    """Have ZeRO-3 gather the layers inside an adapted head once, with the head.

    It would gather them for each tile of logits, of which processes have different numbers: they would wait for ever.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    if list(head.children()):
        from deepspeed.utils import set_z3_leaf_module

        set_z3_leaf_module(head, True)
