"""From a `Batch` to the log-probability and length of each answer, through the model's own (wrapped) forward.

Shapes: R rows of T tokens, S scored positions, A answers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import ModelOutput

from ..batches.batch import NOT_SCORED, Batch, scored_places
from ..errors import SimPOError
from .attached import Scoring, attach_scoring, is_prepared, scoring_of
from .attention import MaskPlan, able_to_run, flex_width
from .experts import BalanceTerm, asks_for_balance, check_balance, router_logits_by_row
from .head import LogitTransform, token_logps
from .modes import evaluating


@dataclass
class ScoringOutput(ModelOutput):
    """The model's output when it is asked to score: one number per scored position, in row-major order.

    Args:
        logps: log-probability of the token each scored position must predict, nats, (S,).
        mean_logits: mean of the logits over the vocabulary, without gradient, (S,).
        router_logits: logits of each layer's router over E experts, (R, T, E) each; only where the model's
            configuration asks for a balance term.
    """

    logps: Tensor | None = None
    mean_logits: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a set of answers, each field of shape (A,).

    Args:
        sum: log-probability of the answer, nats.
        average: log-probability per scored token, nats per token: SimPO's a(y).
        length: number of scored tokens, the end token included.
        logits_sum: sum over scored tokens of the mean logit, without gradient.
    """

    sum: Tensor
    average: Tensor
    length: Tensor
    logits_sum: Tensor

    def select(self, index: Tensor) -> "AnswerScores":
        """Returns the scores of the answers at `index`."""
        return AnswerScores(self.sum[index], self.average[index], self.length[index], self.logits_sum[index])


def score_answers(model: nn.Module, batch: Batch) -> AnswerScores:
    """Run the model once over a batch and score every answer in it.

    Args:
        model: a model prepared by :func:`add_scoring_forward`, possibly wrapped (PEFT, DDP, FSDP, DeepSpeed).
        batch: see :class:`~simpo_trainer.batches.batch.Batch`.

    Returns:
        Scores of all answers of the batch, indexed as `batch["chosen"]` and `batch["rejected"]` are.
    """
    return score_batch(model, batch)[0]


def score_batch(model: nn.Module, batch: Batch) -> tuple[AnswerScores, tuple[Tensor, ...] | None]:
    """Like :func:`score_answers`, with the router logits of a model whose configuration asks for a balance term."""
    sharing = {name: batch[name] for name in ("prompt_index", "branch", "segments") if name in batch}
    scored = scored_places(batch)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=batch["position_ids"],
        scored_labels=batch["shift_labels"],
        scored=scored,
        **sharing,
    )
    answer = batch["response_index"].flatten().index_select(0, scored)
    count = int(batch["num_responses"])
    logps = output.logps if output.logps.dtype == torch.float64 else output.logps.float()
    total = logps.new_zeros(count).index_add(0, answer, logps)
    length = logps.new_zeros(count).index_add(0, answer, torch.ones_like(logps))
    logits_sum = logps.new_zeros(count).index_add(0, answer, output.mean_logits.to(logps.dtype))
    scores = AnswerScores(sum=total, average=total / length, length=length, logits_sum=logits_sum)
    return scores, output.router_logits


def add_scoring_forward(model: PreTrainedModel) -> None:
    """Teach a causal language model to score: `model(..., scored_labels=labels)` returns a :class:`ScoringOutput`.

    `labels` (R, T) holds the token that each position must predict, and -100 elsewhere; only the scored positions go
    through the head. Rows that hold several answers come with `prompt_index` and `branch` (see `Batch`); their masks
    are made here, where the attention and its dtype are known. `scored` and `segments` of the batch save a wait for the
    accelerator. Without `scored_labels` the forward is the model's own, so generation and saving are unchanged. The
    scoring sits inside the forward, and the backbone and head are looked up on each call, because wrappers (DDP, FSDP,
    DeepSpeed, PEFT, autocast) act on the outermost forward and may replace the inner modules afterwards.

    Raises:
        SimPOError: the model is not a decoder-only language model with a head.
    """
    if is_prepared(model):
        return
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None or model.base_model is model:
        raise SimPOError(
            f"The model is a {type(model).__name__}; SimPO needs a decoder-only language model with a head over the "
            "vocabulary. Load it with AutoModelForCausalLM."
        )
    transform = LogitTransform.from_config(model.config)
    original_forward = _unbound(model.forward)
    accepted = inspect.signature(model.base_model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    takes_positions, takes_routers = (
        takes_any or name in accepted for name in ("position_ids", "output_router_logits")
    )

    def forward(
        self,
        *args,
        scored_labels: Tensor | None = None,
        scored: Tensor | None = None,
        branch: Tensor | None = None,
        segments: tuple[tuple[int, int, int], ...] | None = None,
        **kwargs,
    ):
        if scored_labels is None:
            return original_forward(self, *args, **kwargs)
        rows, width = scored_labels.shape
        if branch is not None:
            kwargs = _with_masks(self, branch=branch, segments=segments, **kwargs)
        if not takes_positions:
            kwargs.pop("position_ids", None)
        balanced = asks_for_balance(self.config)
        if balanced and takes_routers:
            kwargs["output_router_logits"] = True
        with able_to_run(_attention(self), scored_labels.device):
            output = self.base_model(*args, **kwargs, use_cache=False)
        # Prompt-learning adapters put virtual tokens before the first one, rows with masks are padded behind the last.
        first = 0 if branch is not None else output.last_hidden_state.shape[1] - width
        own = slice(first, first + width)
        router_logits = router_logits_by_row(output, rows, own) if balanced else None
        if scored is None:
            scored = (scored_labels.flatten() != NOT_SCORED).nonzero().flatten()
        hidden = _at_indices(output.last_hidden_state, scored, width, first)
        targets = scored_labels.flatten().index_select(0, scored)
        logps, mean_logits = token_logps(hidden, self.get_output_embeddings(), targets, transform)
        return ScoringOutput(logps=logps, mean_logits=mean_logits, router_logits=router_logits)

    # `generate` and the Trainer read the signature of `forward`. Not by functools.wraps: accelerate, unwrapping a
    # model, follows `__wrapped__` and would take this forward off.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    attach_scoring(model, forward, Scoring(MaskPlan.from_config(model.config)))


def _at_indices(hidden: Tensor, indices: Tensor, width: int, first: int) -> Tensor:
    """Returns the hidden states (S, H) at `indices` in rows of `width` columns, which begin at column `first`."""
    if hidden.shape[1] != width:
        row = indices.div(width, rounding_mode="floor")
        indices = indices + row * (hidden.shape[1] - width) + first
    return hidden.flatten(0, 1).index_select(0, indices)


def _with_masks(
    model: PreTrainedModel,
    *,
    input_ids: Tensor,
    position_ids: Tensor,
    prompt_index: Tensor,
    branch: Tensor,
    segments: tuple[tuple[int, int, int], ...] | None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Returns the inputs of a backbone for rows that hold several answers; for flex attention, padded further."""
    plan = cast(MaskPlan, scoring_of(model).mask_plan)
    if _attention(model) == "flex_attention":
        padding = (0, flex_width(branch.shape[1]) - branch.shape[1])
        input_ids, position_ids, branch = (F.pad(ids, padding) for ids in (input_ids, position_ids, branch))
        mask: Any = plan.block_masks(F.pad(prompt_index, padding, value=-1), branch, position_ids)
    else:
        mask = plan.masks(prompt_index, branch, position_ids, _attention_dtype(model), segments)
    return kwargs | {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask}


def _attention(model: PreTrainedModel) -> str:
    return model.config.get_text_config()._attn_implementation


def _attention_dtype(model: PreTrainedModel) -> torch.dtype:
    """Returns the dtype in which the model's attention computes, which its mask must have."""
    weight = cast(Tensor, model.get_input_embeddings().weight)
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _unbound(forward: Callable) -> Callable:
    """Returns a forward that takes the model first, so that a copy of the model runs on its own weights.

    A plain callable that a library has put there (accelerate's hooks) keeps the model that it was made for.
    """
    return getattr(forward, "__func__", None) or (lambda self, *args, **kwargs: forward(*args, **kwargs))


@torch.no_grad()
def check_scoring(model: PreTrainedModel) -> None:
    """Compare scoring with the log-softmax of the model's own logits, and balance terms, on a few tokens.

    Scale and soft-capping of logits are read from the configuration by name; a model that does something else between
    head and softmax is refused here rather than trained on another objective. Where this process does not hold all
    weights (ZeRO-3, meta device), nothing is compared.

    Raises:
        SimPOError: the two disagree.
    """
    device = next(model.parameters()).device
    if is_deepspeed_zero3_enabled() or any(parameter.is_meta for parameter in model.parameters()):
        return
    vocab_size = model.get_output_embeddings().weight.shape[0]
    tokens = torch.linspace(0, vocab_size - 1, 8, device=device).long()[None]
    with evaluating(model):
        with able_to_run(_attention(model), device):
            plain = model(input_ids=tokens[:, :-1])
        output = model(input_ids=tokens[:, :-1], scored_labels=tokens[:, 1:])
    expected = plain.logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[0, :, 0]
    scored = output.logps.float()
    exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters())
    exact = exact and not torch.is_autocast_enabled(device.type)
    tolerance = 1e-3 if exact else 0.1
    if (expected - scored).abs().max() > tolerance * (1 + expected.abs().max()):
        raise SimPOError(
            f"{type(model).__name__} changes its logits between head and softmax in a way that is not known here: "
            f"log-probabilities of a test row are {expected.tolist()} by its own forward and {scored.tolist()} by "
            "scoring. Training would follow another objective, so it is refused. Please report the model."
        )
    if term := BalanceTerm.from_config(model.config):
        check_balance(type(model).__name__, getattr(plain, "aux_loss", None), output.router_logits, term, tolerance)
