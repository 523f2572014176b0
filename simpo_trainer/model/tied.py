"""Adapters on a model whose embedding and head are one weight: only some of them can be merged."""

from typing import Any

from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from torch import nn

from ..errors import SimPOError


def check_tied(model: PeftModel) -> None:
    """Refuse an adapter on one weight that is embedding and head at once, where merging would give another model.

    Merging adds an adapter's change to the weight, and so to the other end too, which was trained without it; peft's
    `ensure_weight_tying` adds it twice. Whole copies (`modules_to_save`) and token rows trained at both ends replace
    the weight and can be merged; for copies that differ, peft then sets `tie_word_embeddings` to false.

    Args:
        model: with its adapter.

    Raises:
        SimPOError: names the adapted ends and the remedy.
    """
    ends = _ends(model)
    bases = [_base(end) for _, end in ends]
    if len(ends) < 2 or getattr(bases[0], "weight", None) is not getattr(bases[1], "weight", 0):
        return
    adapted = {name: end for (name, end), base in zip(ends, bases, strict=True) if end is not base}
    if not adapted:
        return
    if all(isinstance(end, ModulesToSaveWrapper) for end in adapted.values()):
        return
    if len(adapted) == 2 and all(_trains_tokens(end) for end in adapted.values()) and _shares_tokens(ends[1][1]):
        return
    names = " and ".join(name for name, _ in ends)
    raise SimPOError(
        f"The adapter is on {' and '.join(adapted)}, and in this model {names} are one weight (tie_word_embeddings). "
        "Merged into it, the change would count at both ends, and the model would be another one than was trained. "
        f"Leave {names} out of target_modules and target_parameters (in a recipe, lora_target_modules and "
        f"lora_target_parameters), or train whole copies: modules_to_save (lora_modules_to_save): "
        f"[{', '.join(name for name, _ in ends)}]. Single tokens are trained at both ends by a trainable_token_indices "
        "that is a list."
    )


def _ends(model: PeftModel) -> list[tuple[str, nn.Module]]:
    """The embedding and the head with the adapter's layers around them, under the names that targets have."""
    base: Any = model.get_base_model()
    inner = [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in base.named_modules()}
    return [(names.get(id(end), type(end).__name__), end) for end in inner]


def _base(module: Any) -> nn.Module:
    """The layer of the base model inside an adapter's layers."""
    while True:
        inner = module.original_module if hasattr(module, "original_module") else getattr(module, "base_layer", None)
        if inner is None:
            return module
        module = inner


def _trains_tokens(end: nn.Module) -> bool:
    return isinstance(end, TrainableTokensWrapper | TrainableTokensLayer)


def _shares_tokens(head: Any) -> bool:
    """Returns whether the head takes its trained rows from the embedding."""
    return getattr(head, "token_adapter", head).tied_adapter is not None
