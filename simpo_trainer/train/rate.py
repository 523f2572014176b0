"""The learning rate where none was chosen: one for training all weights, ten times that for an adapter."""

from peft import PeftModel
from torch import nn

# The paper's middle value for training all weights.
FULL_RATE = 5e-7
# The highest of the paper's, which are all for training all weights.
HIGHEST_FULL_RATE = 1e-6
# "LoRA Without Regret" (Schulman et al., 2025) finds the best rate of LoRA near ten times that of full training, on
# models and ranks of many sizes, in supervised and in reinforcement learning.
ADAPTER_FACTOR = 10


def has_adapter(model: nn.Module) -> bool:
    """Returns whether an adapter of peft is trained, and not all weights of the model."""
    return isinstance(model, PeftModel)


def adapter_rate(full: float) -> tuple[float, str]:
    """Returns the rate for an adapter where no rate is given, and a sentence that tells it.

    Args:
        full: the method's rate for training all weights.
    """
    rate = float(f"{full * ADAPTER_FACTOR:.6g}")
    return rate, (
        f"learning_rate is {rate:g}, {ADAPTER_FACTOR} times the {full:g} for training all weights, since an adapter "
        "trains (docs/adapters.md tells where that comes from). Set learning_rate to choose another."
    )


def low_rate(rate: float) -> str | None:
    """Returns a warning where an adapter is to be trained at a rate that was made for training all weights."""
    if not 0 < rate <= HIGHEST_FULL_RATE:
        return None
    return (
        f"learning_rate {rate:g} is one for training all weights; an adapter hardly moves at it. Set learning_rate: "
        f"{rate * ADAPTER_FACTOR:g}, or null for the default of adapters."
    )
