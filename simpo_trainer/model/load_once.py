"""Under FSDP2 the first process alone reads the weights; the others build the model without any, and get their part.

accelerate sends them out when it splits the model (`fsdp_cpu_ram_efficient_loading`). Since its version 5 transformers
reads them in each process all the same (huggingface/transformers#43749): eight copies of a 70B model in the memory of a
machine with eight accelerators.
"""

import os
from typing import Any

import torch.distributed as dist
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import is_fsdp_enabled

# Arguments of `from_pretrained` that say where weights are and how they are read, but not what the model is.
_OF_READING = {
    *("use_safetensors", "low_cpu_mem_usage", "weights_only", "variant", "force_download", "proxies"),
    *("token", "cache_dir", "local_files_only", "revision", "code_revision", "subfolder"),
}
# Arguments that a model without weights is built with, beside its dtype.
_OF_BUILDING = {"attn_implementation", "experts_implementation", "trust_remote_code"}


def weights_are_sent() -> bool:
    """Returns whether the engine sends the weights of the first process to the others."""
    return is_fsdp_enabled() and os.environ.get("FSDP_VERSION") == "2"


def build_without_weights(name: str, **kwargs: Any) -> PreTrainedModel | None:
    """Build the model that `from_pretrained` would load, with empty weights, in a process that gets them sent.

    Args:
        name: folder or Hub name.
        kwargs: of `from_pretrained`.

    Returns:
        The model, on the device "meta" but for its buffers; None where this process must read the weights: it is the
        first one, nothing is sent, or the weights are stored in another form than the model's own.
    """
    if not weights_are_sent() or dist.get_rank() == 0:
        return None
    dtype = kwargs.pop("dtype", None)
    config, left = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
    dtype = config.dtype if dtype == "auto" else dtype
    unknown = left.keys() - _OF_READING - _OF_BUILDING
    if unknown or dtype is None or "gguf_file" in kwargs or getattr(config, "quantization_config", None) is not None:
        return None
    building = {key: left[key] for key in left if key in _OF_BUILDING}
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **building)
    model.tie_weights()  # each registration in there made a weight of its own
    return model
