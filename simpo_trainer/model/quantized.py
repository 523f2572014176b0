"""4-bit weights stay as they were stored, on CPUs too."""

from torch import nn

# bitsandbytes 0.50: whether a layer may store its weight anew for the bfloat16 instructions of a CPU.
_REPACKS = "support_avx512bf16_for_cpu"


def keep_as_stored(model: nn.Module) -> None:
    """Keep bitsandbytes from storing 4-bit weights anew at the first evaluation on a CPU.

    It would do so with rounder scales, and the training would go on with other weights, which cannot be saved either.
    """
    for module in model.modules():
        if getattr(module, _REPACKS, False):
            setattr(module, _REPACKS, False)
