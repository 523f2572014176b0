"""Attention in rows that hold several answers to one prompt: each answer sees the prompt and itself, no other answer.

Shapes: R rows of T tokens.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

# Kinds of layers whose attention a mask can say; others (chunked, linear, convolutions, state spaces) it cannot.
_MASKABLE = {"full_attention", "sliding_attention"}
# Queries and keys in a block of flex attention, which runs or skips blocks as a whole.
_BLOCK = 128
# Elements of a mask that are looked at together to find such blocks: all of them at once would be a dense mask.
_AT_ONCE = 2**24

Mask = TypeVar("Mask", Tensor, BlockMask)
# Whether a query (third) may see a key (fourth) in a row (first) under a head (second).
_Rule: TypeAlias = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


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
        """Returns the plan of a model; None where some of its layers attend in a way that no mask can express."""
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None)
        kinds = getattr(text, "layer_types", None)
        if not kinds:
            return cls({"": window})
        if not set(kinds) <= _MASKABLE:
            return None
        return cls({kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))})

    def for_all_layers(self) -> "MaskPlan | None":
        """Returns the plan for a model that takes one mask for all layers; None if its layers differ."""
        windows = set(self.windows.values())
        return MaskPlan({"": windows.pop()}) if len(windows) == 1 else None

    def masks(
        self, prompt_index: Tensor, branch: Tensor, position_ids: Tensor, dtype: torch.dtype, segments: Any = None
    ) -> Tensor | dict[str, Tensor]:
        """Returns additive masks (R, 1, T, T) in `dtype`: one, or one for each kind of layer.

        `segments` is not read: the numbers in it would compile a model anew for each batch.
        """
        width = branch.shape[1]
        columns = torch.arange(width, device=branch.device)

        def mask(window: int | None) -> Tensor:
            rule = _rule(prompt_index, branch, position_ids, window)
            return _additive(_table(rule, len(branch), columns, columns), dtype)

        # A window as wide as the rows hides nothing.
        hiding = {kind: window if window and window < width else None for kind, window in self.windows.items()}
        return by_kind(hiding, mask)

    def block_masks(
        self, prompt_index: Tensor, branch: Tensor, position_ids: Tensor
    ) -> BlockMask | dict[str, BlockMask]:
        """Returns masks for flex attention: one, or one for each kind of layer. T must be a multiple of 128."""

        def mask(window: int | None) -> BlockMask:
            rows, width = branch.shape
            return _block_mask(_rule(prompt_index, branch, position_ids, window), rows, width, branch.device)

        return by_kind(self.windows, mask)


def able_to_run(attention: str, device: torch.device) -> AbstractContextManager:
    """Returns the context in which attention must run: on a CPU, flex attention runs uncompiled.

    Torch's kernels for it break on new shapes there. Uncompiled, it is for evaluation only and takes the memory of
    eager attention.
    """
    uncompiled = attention == "flex_attention" and device.type == "cpu"
    return torch.compiler.set_stance("force_eager") if uncompiled else nullcontext()


def flex_width(width: int) -> int:
    """Returns the width to which rows for flex attention are padded.

    New shapes compile its kernels anew, and after a few compilations torch gives up, which would leave dense attention.
    A block that is not full costs as much as a full one, so widths are multiples of 128; above 1024
    they are eighths of a power of two, which adds less than an eighth: 8 widths for all up to 1024, and 8 for each
    doubling.
    """
    step = max(_BLOCK, 2 ** (width - 1).bit_length() // 16)
    return -(-width // step) * step


def by_kind(windows: dict[str, int | None], make: Callable[[int | None], Mask]) -> Mask | dict[str, Mask]:
    """Returns the mask of each kind of layer, made once for each window; the mask itself where all layers take one."""
    masks = {window: make(window) for window in set(windows.values())}
    return masks[windows[""]] if "" in windows else {kind: masks[window] for kind, window in windows.items()}


def _rule(prompt_index: Tensor, branch: Tensor, position_ids: Tensor, window: int | None) -> _Rule:
    """Returns the rule: a column sees earlier ones of its prompt and of its answer, within a window of positions."""

    def sees(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        prompt, answer = prompt_index[row, query], branch[row, key]
        seen = (query >= key) & (prompt == prompt_index[row, key]) & (prompt >= 0)
        seen = seen & ((answer == 0) | (answer == branch[row, query]))
        if window is not None:  # it counts positions, not columns
            seen = seen & (position_ids[row, query] - position_ids[row, key] < window)
        return seen | (query == key)  # a row of a softmax must not be empty, so padding sees itself

    return sees


def _table(rule: _Rule, rows: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the rule's value for every row, query and key, (rows, queries, keys)."""
    row = torch.arange(rows, device=keys.device)
    return rule(row[:, None, None], None, queries[None, :, None], keys[None, None, :])


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    # A bool mask would be right under SDPA and silently wrong under eager attention.
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _block_mask(rule: _Rule, rows: int, width: int, device: torch.device) -> BlockMask:
    """Returns the blocks that a rule fills in part or in full, found without a dense mask.

    torch's `create_block_mask` makes a dense one unless it is compiled, and compiles again for new shapes.
    """
    columns = torch.arange(width, device=device)
    seen = torch.cat(
        [
            _table(rule, rows, queries, columns)
            .reshape(rows, len(queries) // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
            .sum((2, 4))
            for queries in columns.split(_BLOCK * max(1, _AT_ONCE // (rows * _BLOCK * width)))
        ],
        dim=1,
    )[:, None]
    full = seen == _BLOCK * _BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((seen > 0) & ~full), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=cast(Any, rule)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the number of key blocks of each query block, and their indices, which come first and in order."""
    chosen = blocks.int()
    return chosen.sum(-1, dtype=torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).int()
