"""Which layout a run's batches get: the fastest that is exact for the model, backed by a test of the two against each other."""

from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from .attention import MaskPlan
from .batching import Batch, Layout, PairCollator
from .data.token_sets import token_lengths
from .errors import SimPOError
from .scoring import score_answers

# Architectures whose layouts the test suite compares; where weights are spread over processes, the test at the start
# cannot run, and other architectures get padded rows.
TESTED = {
    *("cohere", "cohere2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral"),
    *("olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
}
# Attention that takes a mask of any form, and attention that tells sequences of one row apart by their positions.
_MASKED_ATTENTION = ("sdpa", "eager")
_UNPADDED_ATTENTION = ("flash_attention_2", "flash_attention_3")
# Attention to a part of the past that is counted in columns, inside the layers; short rows would not show it.
_OWN_WINDOWS = ("attention_types", "attention_chunk_size", "window_size")


def choose_layout(model: PreTrainedModel | PeftModel, wanted: str) -> tuple[Layout, str]:
    """The layout of a run's batches, and why.

    Args:
        model: prepared by `scoring.add_scoring_forward`.
        wanted: "auto", or a layout.

    Raises:
        SimPOError: the wanted layout is not exact for this model.
    """
    if wanted == "padded":
        return "padded", "as asked for"
    attention = model.config.get_text_config()._attn_implementation
    if attention in _UNPADDED_ATTENTION and wanted != "shared_prefix":
        layout: Layout = "padding_free"
        reason = f"answers one after the other without padding; {attention} takes no mask with which they could share"
    else:
        layout = "packed" if wanted == "packed" else "shared_prefix"
        reason = "a prompt is run once for its answers"
    hindrance = _hindrance(model, layout)
    if hindrance is None:
        return layout, reason
    if wanted == "auto":
        return "padded", f"answers cannot share a row: {hindrance}"
    raise SimPOError(
        f"batch_layout is {wanted}, but answers cannot share a row: {hindrance}. Set batch_layout: auto or padded."
    )


def saved_tokens(dataset: Any, layout: Layout) -> str:
    """For the log: how many tokens fewer a set has where answers share their prompt; "" where none, or for a stream."""
    if layout not in ("shared_prefix", "packed") or not hasattr(dataset, "__len__"):
        return ""
    prompt, chosen, rejected = token_lengths(dataset).sum(0).tolist()
    shared = prompt + chosen + rejected
    return f"; {1 - shared / (shared + prompt):.0%} fewer tokens than with a row for each answer, its padding aside"


def _hindrance(model: PreTrainedModel | PeftModel, wanted: Layout) -> str | None:
    """Why the answers of this model cannot share a row with their prompt; None where they can."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return f"a {model.active_peft_config.peft_type.value} adapter puts tokens of its own in front of every row"
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    config = base.config.get_text_config()
    attention = config._attn_implementation
    if attention not in _MASKED_ATTENTION and wanted != "padding_free":
        return f"{attention} takes no mask that keeps them apart"
    plan = MaskPlan.from_config(base.config)
    if plan is None:
        kinds = set(config.layer_types) - {"full_attention", "sliding_attention"}
        return f"the model has layers of the kind {', '.join(sorted(kinds))}"
    if own := [name for name in _OWN_WINDOWS if getattr(config, name, None)]:
        return f"its layers have a window of their own ({own[0]})"
    if is_deepspeed_zero3_enabled() or any(parameter.is_meta for parameter in base.parameters()):
        return (
            None if config.model_type in TESTED else f"{config.model_type} is not known, and its weights are elsewhere"
        )
    return _difference(base, plan, wanted)


def _difference(model: PreTrainedModel, plan: MaskPlan, layout: Layout) -> str | None:
    """What a test batch shows: None where shared rows score as rows of their own do."""
    error = ""
    for candidate in (plan, plan.for_all_layers()):
        if candidate is None:
            continue
        model.mask_plan = candidate  # type: ignore[assignment]
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
