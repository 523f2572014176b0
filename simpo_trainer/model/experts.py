"""The balance term of mixture-of-experts models, which keeps a router from sending all tokens to a few experts.

Shapes: R rows of T tokens, A answers, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, TrainingArguments

from ..batches.batch import Batch
from ..errors import SimPOError

_TURN_OFF = "Set output_router_logits: false in the model's configuration to train without the balance term."


def asks_for_balance(config: PretrainedConfig) -> bool:
    """Returns whether a model's configuration asks for the balance term, as transformers and trl read it."""
    return bool(getattr(config.get_text_config(), "output_router_logits", False))


@dataclass(frozen=True)
class BalanceTerm:
    """The term of the loss for the balance of experts.

    Args:
        coefficient: factor of the term in the loss, `router_aux_loss_coef` of the model's configuration.
        experts_per_token: experts that each token is sent to.
    """

    coefficient: float
    experts_per_token: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "BalanceTerm | None":
        """The term that a model's configuration asks for; None where it asks for none.

        Raises:
            SimPOError: it asks for the term and does not say how much of it, or how many experts a token has.
        """
        if not asks_for_balance(config):
            return None
        text = config.get_text_config()
        values: dict[str, Any] = {
            name: getattr(text, name, None) for name in ("router_aux_loss_coef", "num_experts_per_tok")
        }
        if missing := [name for name, value in values.items() if value is None]:
            raise SimPOError(
                "The model's configuration has output_router_logits: true, which asks for a balance term over "
                f"experts, but no {' and no '.join(missing)}. {_TURN_OFF}"
            )
        return cls(float(values["router_aux_loss_coef"]), int(values["num_experts_per_tok"]))

    @classmethod
    def of_run(cls, config: PretrainedConfig, args: TrainingArguments) -> "BalanceTerm | None":
        """Like :meth:`from_config`, for training with these arguments.

        Raises:
            SimPOError: activation checkpointing is reentrant: it runs layers without gradients at first, when the
                routers are read, and the term would have none.
        """
        term = cls.from_config(config)
        options = cast(dict[str, Any], args.gradient_checkpointing_kwargs or {})
        if term and args.gradient_checkpointing and options.get("use_reentrant"):
            raise SimPOError(
                "gradient_checkpointing_kwargs has use_reentrant: true and the model's configuration "
                "output_router_logits: true: the balance term over experts would have no gradient. Set "
                "gradient_checkpointing_kwargs: {use_reentrant: false}."
            )
        return term

    def loss(self, router_logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """The term of a micro-batch before its coefficient, shape ().

        Args:
            router_logits: logits of each layer's router, (R, T, E) each.
            batch: the micro-batch that they belong to.
        """
        return balance_loss(router_logits, token_weights(batch), self.experts_per_token)


def balance_loss(router_logits: Sequence[Tensor], weights: Tensor, experts_per_token: int) -> Tensor:
    """Balance loss of Switch Transformers (arXiv 2101.03961, equations 4 to 6), over all layers together.

    E * sum_e f_e * P_e, where f_e is the mean number of times that a token is sent to expert e and P_e the mean
    probability that routers give to it; as transformers' `load_balancing_loss_func`, with a weight for each token.

    Args:
        router_logits: logits of each layer's router, (R, T, E) each.
        weights: how often each token counts, whole numbers, (R, T).
        experts_per_token: experts that each token is sent to.

    Returns:
        The loss, shape (); 0 where no token counts.
    """
    experts = router_logits[0].shape[-1]
    dtype = torch.promote_types(router_logits[0].dtype, torch.float32)
    weight = weights.flatten().to(dtype)
    sent = probability = weight.new_zeros(experts)
    for logits in router_logits:
        # Layers of a model may lie on several devices.
        probabilities = logits.reshape(-1, experts).to(weight.device, dtype).softmax(-1)
        chosen = probabilities.detach().topk(experts_per_token, dim=-1).indices
        sent = sent.index_add(0, chosen.flatten(), weight.repeat_interleave(experts_per_token))
        probability = probability + (weight[:, None] * probabilities).sum(0)
    count = (len(router_logits) * weight.sum()).clamp(min=1)
    return experts * (sent / count * (probability / count)).sum()


def token_weights(batch: Batch) -> Tensor:
    """Returns for each position the number of answers that read it, (R, T) in float32, so that all layouts count alike.

    1 for an answer's own inputs, the number of its answers for a token of a shared prompt, 0 for padding. Only answers
    of a pair with a weight above 0 count.
    """
    sides = torch.cat([batch["chosen"], batch["rejected"]])
    real = (batch["pair_weight"] > 0).float().repeat(2)
    counted = real.new_zeros(int(batch["num_responses"])).scatter_reduce(0, sides, real, "amax")
    return _in_shared_rows(batch, counted) if "branch" in batch else _in_single_rows(batch, counted)


def _in_shared_rows(batch: Batch, counted: Tensor) -> Tensor:
    """Weights where a prompt's answers follow it; `counted` (A,) is 1 for the answers that count."""
    prompt, branch = batch["prompt_index"], batch["branch"]
    answer = (branch - 1).clamp(min=0)
    # The prompt of each answer, read off the answer's tokens.
    own_prompt = torch.where(branch > 0, prompt, 0)
    prompt_of = torch.zeros_like(counted, dtype=torch.long)
    prompt_of = prompt_of.scatter_reduce(0, answer.flatten(), own_prompt.flatten(), "amax")
    answers_of = torch.zeros_like(counted).index_add(0, prompt_of, counted)
    return torch.where(branch > 0, counted[answer], answers_of[prompt.clamp(min=0)]) * (prompt >= 0)


def _in_single_rows(batch: Batch, counted: Tensor) -> Tensor:
    """Weights where every answer has a prompt of its own; `counted` (A,) is 1 for the answers that count."""
    positions, response = batch["position_ids"].flatten(), batch["response_index"].flatten()
    # A sequence begins at position 0; of its tokens, those of the answer say which answer it is.
    sequence = (positions == 0).cumsum(0) - 1
    answer = torch.zeros_like(response).scatter_reduce(0, sequence, response, "amax")[sequence]
    weights = counted[answer].reshape(batch["position_ids"].shape)
    return weights * batch["attention_mask"] if "attention_mask" in batch else weights


def router_logits_by_row(output: Any, rows: int, columns: slice) -> tuple[Tensor, ...]:
    """The router logits that a backbone returned for some columns of its rows, (R, T, E) for each layer with a router.

    Raises:
        SimPOError: it returned none.
    """
    found = getattr(output, "router_logits", None)
    if not found:
        raise SimPOError(
            "The model's configuration has output_router_logits: true, which asks for a balance term over experts, but "
            f"the model returns no router logits. {_TURN_OFF}"
        )
    return tuple(logits.reshape(rows, -1, logits.shape[-1])[:, columns] for logits in found)


def check_balance(name: str, own: Tensor | None, router_logits: Sequence[Tensor], term: BalanceTerm, tolerance: float):
    """Compare the balance term with that of the model's own forward, for a row whose tokens all count once.

    Args:
        name: the model's class, for the message.
        own: the balance loss that the model's own forward returned.
        router_logits: logits of each layer's router for the same row.
        term: the term that training adds.
        tolerance: relative.

    Raises:
        SimPOError: the two disagree, or the model's own forward has no such term.
    """
    found = balance_loss(router_logits, torch.ones_like(router_logits[0][..., 0]), term.experts_per_token)
    if own is None:
        raise SimPOError(
            "The model's configuration has output_router_logits: true, which asks for a balance term over experts, "
            f"but {name} has none in its own loss. {_TURN_OFF}"
        )
    if abs(float(own) - float(found)) > tolerance * (1 + abs(float(own))):
        raise SimPOError(
            f"{name} has another balance term over experts than the one known here: on a test row {float(own):.4f} by "
            f"its own forward, {float(found):.4f} by equations 4 to 6 of Switch Transformers. {_TURN_OFF}"
        )
