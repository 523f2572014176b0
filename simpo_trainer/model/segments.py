"""Attention of a packed row, piece by piece: a prompt sees itself, an answer its prompt and itself; there is no mask.

A mask over a row of T tokens costs T² products, of which most are thrown away. Here each piece goes through SDPA on its
own, so that attention costs what separate sequences would, less the prompts that they share.

Shapes: one row of T tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..batches.batch import segments_of
from .attention import MaskPlan, by_kind

# The name under which a model's configuration finds this attention. With any other mask, or none, it is plain SDPA.
SEGMENT_ATTENTION = "simpo_segments"

_sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]


class Segment(NamedTuple):
    """Consecutive tokens of a row: their number, the number of the segment that they continue, and the mask over both.

    The mask is additive, (1, 1, tokens, tokens of both), or a causal one aligned to the lower right. It is None where
    each token sees the earlier ones of its own segment and nothing else, or where a single token sees everything.
    """

    length: int
    prefix: int | None
    mask: Tensor | None


class SegmentMask(Tensor):
    """Takes the place of a 4-D mask, which models hand to their layers untouched, and lists the segments of a row."""

    segments: list[Segment]

    @classmethod
    def of(cls, segments: list[Segment], device: torch.device) -> "SegmentMask":
        """Returns a mask that stands for `segments`."""
        mask = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device).as_subclass(cls)
        mask.segments = segments
        return mask


@dataclass(frozen=True)
class SegmentPlan(MaskPlan):
    """A :class:`~simpo_trainer.model.attention.MaskPlan` whose masks list the segments of a row instead."""

    def for_all_layers(self) -> "SegmentPlan | None":
        """Like :meth:`~simpo_trainer.model.attention.MaskPlan.for_all_layers`."""
        plan = super().for_all_layers()
        return None if plan is None else SegmentPlan(plan.windows)

    def masks(
        self, prompt_index: Tensor, branch: Tensor, position_ids: Tensor, dtype: torch.dtype, segments: Any = None
    ) -> Tensor | dict[str, Tensor]:
        """Returns stand-ins for the mask of a packed row: one, or one for each kind of layer.

        Args:
            prompt_index, branch, position_ids, segments: of :class:`~simpo_trainer.batches.batch.Batch`; without
                `segments`, an accelerator is waited for.
            dtype: of additive masks.

        Raises:
            ValueError: there are several rows.
        """
        if len(branch) != 1:
            raise ValueError(f"segments are those of one packed row, found {len(branch)} rows")
        pieces, device = _pieces(segments or segments_of(prompt_index, branch)), branch.device

        def mask(window: int | None) -> Tensor:
            return SegmentMask.of([_segment(*piece, window, dtype, device) for piece in pieces], device)

        return by_kind(self.windows, mask)


def _pieces(segments: Iterable[tuple[int, int, int]]) -> list[tuple[int, int | None, int]]:
    """Returns the length of each segment, the number of the one that it continues, and that one's length."""
    pieces: list[tuple[int, int | None, int]] = []
    shared: dict[int, int] = {}
    for number, (prompt, answer, length) in enumerate(segments):
        if answer == 0:
            shared[prompt] = number
        # A prompt of one token has no shared part: that token begins each of its answers.
        prefix = shared.get(prompt) if answer else None
        pieces.append((length, prefix, 0 if prefix is None else pieces[prefix][0]))
    return pieces


def _segment(
    length: int, prefix: int | None, before: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Segment:
    keys = before + length
    if window is None or keys <= window:
        if prefix is None or length == 1:
            return Segment(length, prefix, None)
        if device.type == "cuda":  # by which flash attention runs; elsewhere it would be made anew in each layer
            return Segment(length, prefix, causal_lower_right(length, keys))
    seen = torch.ones(length, keys, dtype=torch.bool, device=device).tril_(before)
    if window is not None:
        seen.triu_(before - window + 1)
    mask = torch.zeros(length, keys, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    return Segment(length, prefix, mask[None, None])


def _segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it: query, key and value (1, heads, T, size), output (1, T, heads, size)."""
    if not isinstance(attention_mask, SegmentMask):
        return _sdpa(module, query, key, value, attention_mask, **kwargs)
    kwargs["is_causal"] = True  # counts where a segment has no mask
    segments = attention_mask.segments
    # Split once: gradients of slices would each be as large as the row.
    lengths = [segment.length for segment in segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for number, segment in enumerate(segments):
        own_key, own_value = keys[number], values[number]
        if segment.prefix is not None:
            own_key = torch.cat([keys[segment.prefix], own_key], dim=2)
            own_value = torch.cat([values[segment.prefix], own_value], dim=2)
        outputs.append(_sdpa(module, queries[number], own_key, own_value, segment.mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(SEGMENT_ATTENTION, _segment_attention)
AttentionMaskInterface.register(SEGMENT_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
