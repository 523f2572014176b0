"""The weights of a model that FSDP has split: gathered to be saved, and put back from a checkpoint."""

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils.constants import FSDP_MODEL_NAME
from peft import PeftModel, PeftType
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import SimPOError


def gathers_checkpoints(accelerator: Accelerator) -> bool:
    """Returns whether the checkpoints of FSDP hold the model whole, and not in parts."""
    return "FULL_STATE_DICT" in str(accelerator.state.fsdp_plugin.state_dict_type)


def gather_weights(accelerator: Accelerator, model: Any) -> dict[str, Any]:
    """Gather the weights of a model that FSDP splits, in the memory of the first process; every process must call it.

    Of LoRA only what trains: its base may be larger than the memory there, and is not saved with it.

    Args:
        accelerator: that has prepared the model.
        model: as it was prepared.

    Returns:
        The weights by name; empty on the other processes.
    """
    if splits_lora(accelerator, model):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(model, options=options)
    return accelerator.get_state_dict(model)


def splits_lora(accelerator: Accelerator, model: Any) -> bool:
    """Returns whether FSDP2 has split a model with LoRA."""
    plugin, inner = getattr(accelerator.state, "fsdp_plugin", None), accelerator.unwrap_model(model)
    is_lora = isinstance(inner, PeftModel) and inner.active_peft_config.peft_type == PeftType.LORA
    return is_lora and plugin is not None and plugin.fsdp_version == 2


def load_split_lora(model: nn.Module, checkpoint: str | Path) -> None:
    """Put LoRA from a checkpoint that FSDP2 has written whole into the split model; every process must call it.

    torch fails over the scales of 4-bit weights that stand beside them there.

    Args:
        model: as it was split.
        checkpoint: its folder.

    Raises:
        SimPOError: a weight that trains is not in the checkpoint.
    """
    file = Path(checkpoint) / f"{FSDP_MODEL_NAME}.bin"
    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if missing := sorted(trained.keys() - saved.keys()):
        raise SimPOError(f"{file} does not hold {missing[0]}, which trains. Go on from another checkpoint.")
    with torch.no_grad():
        for name, weight in trained.items():
            whole, part = saved[name].to(weight.device), cast(Any, weight)
            if isinstance(weight, DTensor):
                whole = distribute_tensor(whole, part.device_mesh, part.placements)
            part.copy_(whole)
