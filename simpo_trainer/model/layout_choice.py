"""Chooses the layout of a run's batches: the fastest that is exact for the model, compared with the plain one first."""

from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..batches.batch import Batch, Layout, PairCollator
from ..errors import SimPOError
from ..tokens.sets import token_lengths
from .attached import Scoring, replace_scoring
from .attention import MaskPlan
from .load_once import weights_are_sent
from .scoring import score_answers
from .segments import SEGMENT_ATTENTION, SegmentPlan

# The test suite compares the layouts of these architectures. Where weights are spread over processes, the comparison at
# the start cannot run, and other architectures get padded rows.
TESTED = {
    *("cohere", "cohere2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral"),
    *("olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
}
# Attention that takes a mask of any form, and attention that tells sequences of one row apart by their positions.
_MASKED_ATTENTION = ("sdpa", "eager", "flex_attention", SEGMENT_ATTENTION)
_UNPADDED_ATTENTION = ("flash_attention_2", "flash_attention_3")
# Attention to a part of the past that is counted in columns, inside the layers; short rows would not show it.
_OWN_WINDOWS = ("attention_types", "attention_chunk_size", "window_size")


class _Way(NamedTuple):
    """A layout with the masks that it takes, and the reason to choose it."""

    layout: Layout
    plan: type[MaskPlan]
    reason: str


_SHARED = "a prompt is run once for its answers"
_PIECEWISE = f"{_SHARED}; attention goes from piece to piece"


def choose_layout(model: PreTrainedModel | PeftModel, wanted: str, *, compiled: bool = False) -> tuple[Layout, str]:
    """Choose the layout of a run's batches, and prepare the model for it; returns the layout and the reason.

    Args:
        model: prepared by `scoring.add_scoring_forward`.
        wanted: "auto", or a layout.
        compiled: `torch.compile` will be applied to the model.

    Raises:
        SimPOError: the wanted layout is not exact for this model.
    """
    if wanted == "padded":
        return "padded", "as asked for"
    hindrance: str | None = None
    for way in _ways(model, wanted, compiled):
        hindrance = _hindrance(model, way) or _take(model, way)
        if hindrance is None:
            return way.layout, way.reason
    if wanted == "auto":
        return "padded", f"answers cannot share a row: {hindrance}"
    raise SimPOError(
        f"batch_layout is {wanted}, but answers cannot share a row: {hindrance}. Set batch_layout: auto or padded."
    )


def _ways(model: PreTrainedModel | PeftModel, wanted: str, compiled: bool) -> list[_Way]:
    """Returns the ways in which a model with this attention could take the wanted layout, the fastest first."""
    attention = model.config.get_text_config()._attn_implementation
    if attention in _UNPADDED_ATTENTION and wanted != "shared_prefix":
        reason = f"answers one after the other without padding; {attention} takes no mask with which they could share"
        return [_Way("padding_free", MaskPlan, reason)]
    skips_blocks = attention == "flex_attention" and next(model.parameters()).device.type != "cpu"
    packs = wanted == "packed" or (wanted == "auto" and skips_blocks)
    ways = [_Way("packed" if packs else "shared_prefix", MaskPlan, _SHARED)]
    # Pieces are of other sizes in each batch, for which a compiled model would be compiled anew.
    if attention in ("sdpa", SEGMENT_ATTENTION) and wanted != "shared_prefix" and not compiled:
        ways.insert(0, _Way("packed", SegmentPlan, _PIECEWISE))
    return ways


def check_attention_trains(model: PreTrainedModel | PeftModel) -> None:
    """Refuse to train with attention that has no backward pass where the model is.

    Raises:
        SimPOError: the model has flex attention and is on a CPU, or on Apple's GPU.
    """
    attention = model.config.get_text_config()._attn_implementation
    device = next(model.parameters()).device.type
    if attention == "flex_attention" and device in ("cpu", "mps"):
        raise SimPOError(
            f"The model has flex_attention and is on the device {device}, where torch has no backward pass for it; "
            "evaluation works there. To train, use another accelerator, or set "
            "model_init_kwargs: {attn_implementation: sdpa}."
        )


def saved_tokens(dataset: Any, layout: Layout) -> str:
    """For the log: how many tokens fewer a set has where answers share their prompt; "" where none, or for a stream."""
    if layout not in ("shared_prefix", "packed") or not hasattr(dataset, "__len__"):
        return ""
    prompt, answers, count = token_lengths(dataset).T
    saved = (prompt * (count - 1)).sum() / (prompt * count + answers).sum()
    return f"; {saved:.0%} fewer tokens than with a row for each answer, its padding aside"


def _hindrance(model: PreTrainedModel | PeftModel, way: _Way) -> str | None:
    """Returns why the answers of this model cannot share a row with their prompt; None if nothing speaks against it."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return f"a {model.active_peft_config.peft_type.value} adapter puts tokens of its own in front of every row"
    if isinstance(model, PeftModel) and getattr(model.active_peft_config, "alora_invocation_tokens", None):
        # It would change only what follows the last of them in a row, which is one answer of many.
        return "an aLoRA adapter looks for its invocation tokens once in a row"
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    config = base.config.get_text_config()
    attention = config._attn_implementation
    if attention not in _MASKED_ATTENTION and way.layout != "padding_free":
        return f"{attention} takes no mask that keeps them apart"
    if way.plan.from_config(base.config) is None:
        kinds = set(config.layer_types) - {"full_attention", "sliding_attention"}
        return f"the model has layers of the kind {', '.join(sorted(kinds))}"
    if own := [name for name in _OWN_WINDOWS if getattr(config, name, None)]:
        return f"its layers have a window of their own ({own[0]})"
    if not _weights_are_here(base) and config.model_type not in TESTED:
        return f"{config.model_type} is not known, and its weights are elsewhere"
    return None


def _take(model: PreTrainedModel | PeftModel, way: _Way) -> str | None:
    """Give the model the masks of a way that nothing hinders, and its attention if the test batch scores right with it.

    Returns:
        None, or why the way is not taken.
    """
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    attention = base.config.get_text_config()._attn_implementation
    plan = cast(MaskPlan, way.plan.from_config(base.config))
    if way.plan is SegmentPlan:
        base.set_attn_implementation(SEGMENT_ATTENTION)
    replace_scoring(base, Scoring(plan))
    difference = _fit_masks(base, plan, way.layout) if _weights_are_here(base) else None
    if difference and way.plan is SegmentPlan:
        base.set_attn_implementation(attention)
    return difference


def _weights_are_here(model: PreTrainedModel) -> bool:
    # Where they are sent from the first process, that one must not find another layout than the others.
    elsewhere = is_deepspeed_zero3_enabled() or weights_are_sent()
    return not (elsewhere or any(parameter.is_meta for parameter in model.parameters()))


def _fit_masks(model: PreTrainedModel, plan: MaskPlan, layout: Layout) -> str | None:
    """Give the model the first masks with which shared rows of a test batch score as rows of their own do.

    Returns:
        None, or why no masks do.
    """
    error = ""
    for candidate in (plan, plan.for_all_layers()):
        if candidate is None:
            continue
        replace_scoring(model, Scoring(candidate))
        try:
            if _scores_alike(model, layout):
                return None
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, RuntimeError) as caught:
            error = f": {caught}"
    name = model.config.get_text_config().model_type
    return (
        f"{name} does not take masks and positions as they would need{error}"
        if error
        else (f"{name} scores shared rows otherwise than single ones (as with ALiBi or a running state)")
    )


@torch.no_grad()
def _scores_alike(model: PreTrainedModel, layout: Layout) -> bool:
    vocab_size = model.get_output_embeddings().weight.shape[0]
    ids = torch.linspace(0, vocab_size - 1, 40).long().tolist()
    pairs = [
        {"prompt_ids": ids[:9], "chosen_ids": ids[9:16], "rejected_ids": ids[16:20]},
        {"prompt_ids": ids[20:21], "chosen_ids": ids[21:24], "rejected_ids": ids[24:33]},
    ]
    device = next(model.parameters()).device
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        single = torch.cat([_averages(model, [pair], "padded", device) for pair in pairs])
        together = _averages(model, pairs, "padded", device)
        shared = _averages(model, pairs, layout, device)
    finally:
        for module in was_training:
            module.training = True
    # In 16 bit, other padding alone changes scores a little; what a wrong mask does is far more.
    single = single[[0, 2, 1, 3]]  # both chosen answers, then both rejected, as in one batch
    noise = (single - together).abs().max()
    return bool((single - shared).abs().max() <= 1e-3 * (1 + single.abs().max()) + 10 * noise)


def _averages(model: nn.Module, pairs: list[dict], layout: Layout, device: torch.device) -> Tensor:
    batch = {key: cast(Tensor, value).to(device) for key, value in PairCollator(layout=layout)(pairs).items()}
    return score_answers(model, cast(Batch, batch)).average.float()
