"""Attention of rows that hold several answers to one prompt: each answer sees the prompt and itself, never its sibling.

Shapes: R rows of T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

# Kinds of layers whose attention a mask can say; others (chunked, linear, convolutions, state spaces) it cannot.
_MASKABLE = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class MaskPlan:
    """The masks that a model's layers take.

    Args:
        windows: kind of layer to its sliding window in positions, None for full attention. One entry with the name ""
            stands for a model that hands one mask to all layers.
    """

    windows: dict[str, int | None]

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "MaskPlan | None":
        """The plan of a model by its configuration; None where some layers attend in a way that no mask says."""
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None)
        kinds = getattr(text, "layer_types", None)
        if not kinds:
            return cls({"": window})
        if not set(kinds) <= _MASKABLE:
            return None
        return cls({kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))})

    def for_all_layers(self) -> "MaskPlan | None":
        """The plan as one mask for a model that takes no mask by kind of layer; None if its layers differ."""
        windows = set(self.windows.values())
        return MaskPlan({"": windows.pop()}) if len(windows) == 1 else None

    def masks(
        self, prompt_index: Tensor, branch: Tensor, position_ids: Tensor, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """Additive masks (R, 1, T, T) in `dtype`: one, or one for each kind of layer."""
        seen = _seen(prompt_index, branch)
        masks = {kind: _additive(_within(seen, position_ids, window), dtype) for kind, window in self.windows.items()}
        return masks[""] if "" in masks else masks


def _seen(prompt_index: Tensor, branch: Tensor) -> Tensor:
    """Which column (last) each column (last but one) may see, (R, T, T): earlier ones of its prompt and of its answer."""
    columns = torch.arange(branch.shape[1], device=branch.device)
    earlier = columns[:, None] >= columns[None, :]
    same_prompt = prompt_index[:, :, None] == prompt_index[:, None, :]
    shared_or_own = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    # A row of a softmax must not be empty, so padding sees itself.
    return earlier & same_prompt & shared_or_own & (prompt_index >= 0)[:, :, None] | torch.eye(
        branch.shape[1], dtype=torch.bool, device=branch.device
    )


def _within(seen: Tensor, position_ids: Tensor, window: int | None) -> Tensor:
    """What is left of `seen` under a sliding window, which counts positions, not columns."""
    if window is None or position_ids.max() < window:
        return seen
    return seen & (position_ids[:, :, None] - position_ids[:, None, :] < window)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    # A bool mask would be right under SDPA and silently wrong under eager attention.
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
