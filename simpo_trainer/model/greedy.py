"""Greedy answers of a model that is being trained, whatever its processes and however its weights are spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import GenerationConfig

from .modes import evaluating


@dataclass(frozen=True)
class GreedyAnswer:
    """An answer as token ids, without the token that ended it.

    Args:
        ids: the tokens.
        ended: whether an end token followed; otherwise the answer was cut off.
    """

    ids: list[int]
    ended: bool


def greedy_answers(
    model: nn.Module,
    prompts: Sequence[list[int]],
    accelerator: Accelerator,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[GreedyAnswer]:
    """Returns an answer to each prompt; every process must call it.

    Each process answers its share in one batch, so that none waits for long. Where weights are spread over processes
    (FSDP, ZeRO-3), all make the same number of forwards.

    Args:
        model: as the trainer has prepared it.
        prompts: the token ids of each.
        accelerator: of the run.
        end_ids: tokens that end an answer.
        pad_id: fills rows up.
        max_new_tokens: of an answer.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    own = list(prompts[rank::processes]) or [prompts[0]]  # nothing to do is still to be done where weights are spread
    found = _generated(model, own, accelerator, list(end_ids), pad_id, max_new_tokens)
    if processes == 1:
        return found
    shares: list[list[tuple[list[int], bool]]] = gather_object([[(each.ids, each.ended) for each in found]])
    return [GreedyAnswer(*shares[i % processes][i // processes]) for i in range(len(prompts))]


@torch.no_grad()
def _generated(
    model: nn.Module,
    prompts: list[list[int]],
    accelerator: Accelerator,
    end_ids: list[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[GreedyAnswer]:
    inner: Any = accelerator.unwrap_model(model)
    width, device = max(map(len, prompts)), accelerator.device
    ids = torch.tensor([[pad_id] * (width - len(each)) + each for each in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_ids or None, pad_token_id=pad_id
    )
    spread = accelerator.num_processes > 1 and _is_spread(inner)
    with evaluating(model), _with_config(inner, config), accelerator.autocast():
        output = inner.generate(input_ids=ids, attention_mask=mask, use_cache=True, synced_gpus=spread)
    return [_until_end(row, set(end_ids)) for row in output[:, width:].tolist()]


def _is_spread(model: nn.Module) -> bool:
    """Returns whether a process holds parts of weights alone, so that a forward needs the other processes."""
    return any(hasattr(weight, "ds_id") or hasattr(weight, "device_mesh") for weight in model.parameters())


class _with_config:
    """Holds a generation config on a model while entered: what it does not set, `generate` takes from the model's."""

    def __init__(self, model: Any, config: GenerationConfig) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._models, self._config = list(dict.fromkeys((model, base))), config

    def __enter__(self) -> None:
        self._kept = [getattr(each, "generation_config", None) for each in self._models]
        for each in self._models:
            each.generation_config = self._config

    def __exit__(self, *_: object) -> None:
        for each, kept in zip(self._models, self._kept, strict=True):
            each.generation_config = kept


def _until_end(ids: list[int], ends: set[int]) -> GreedyAnswer:
    for place, number in enumerate(ids):
        if number in ends:
            return GreedyAnswer(ids[:place], True)
    return GreedyAnswer(ids, False)
