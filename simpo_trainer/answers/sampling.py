"""Sampling that depends on prompt, seed and position alone: no generator, no order of rows, no batch.

`generate` takes the likeliest token; the processor here leaves it one token, sampled by its place in the running sum of
the probabilities (the inverse of their distribution). The number that chooses the place is a hash (SplitMix64) of the
answer's key and the position: one for each row, which costs next to nothing where a noise for each token would not.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..errors import SimPOError
from ..loss.metrics import accumulation_dtype

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, as a signed number
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
# Bits of a hash that make a number: as many as float64 holds exactly with a half behind them.
_BITS = 52
# The likeliest tokens that are looked at first; all are sorted only where their probabilities do not sum up.
_LIKELY = 256


class KeyedSampling(LogitsProcessor):
    """Leaves of each row's logits one token, sampled with temperature and top-p.

    Args:
        keys: a number for each row, int64 (rows,); the same number gives the same sample.
        prompt_length: tokens of the rows before the first new one, padding included.
        temperature: above 0.
        top_p: sample from the likeliest tokens whose probabilities sum up to this.
    """

    def __init__(self, keys: Tensor, prompt_length: int, temperature: float, top_p: float) -> None:
        self._keys = keys.cpu()
        self._prompt_length = prompt_length
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores (rows, tokens) with all but the sampled token of each row at minus infinity."""
        logits, tokens = nucleus(scores.float() / self._temperature, self._top_p)
        position = input_ids.shape[1] - self._prompt_length
        sums = logits.softmax(-1).to(accumulation_dtype(logits.device)).cumsum(-1)
        chosen = uniform(self._keys, position).to(sums)[:, None] * sums[:, -1:]
        place = torch.searchsorted(sums, chosen, right=True).clamp(max=sums.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.gather(-1, place), 0.0)


def nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns the likeliest tokens whose probabilities sum up to `top_p`, as transformers' `TopPLogitsWarper` has them.

    Args:
        logits: float32 (rows, tokens).
        top_p: above 0, at most 1.

    Returns:
        Their logits, and their ids, both (rows, candidates); the logit of a candidate outside is minus infinity.

    Raises:
        SimPOError: a row's logits are not numbers.
    """
    total = logits.logsumexp(-1, keepdim=True)
    if not torch.isfinite(total).all():
        raise SimPOError(
            "The model gives logits that are no finite numbers. Load it with dtype: float32 or bfloat16, and check "
            "its weights."
        )
    if top_p == 1:
        return logits, torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    count = min(_LIKELY, logits.shape[-1])
    while True:
        likeliest, tokens = logits.topk(count, dim=-1)
        chances = (likeliest - total).exp()
        before = chances.cumsum(-1) - chances
        if count == logits.shape[-1] or bool((before[:, -1] >= top_p).all()):
            return likeliest.masked_fill(before >= top_p, -torch.inf), tokens
        count = logits.shape[-1]


def uniform(keys: Tensor, position: int) -> Tensor:
    """Returns a number above 0 and below 1 for each row, float64 (rows,).

    Args:
        keys: int64 (rows,).
        position: of the new token in the answer, from 0.
    """
    found = _mixed(_mixed(keys + (position + 1) * _GOLDEN % (1 << 63)) + _GOLDEN)
    return (_shifted(found, 64 - _BITS).double() + 0.5) / (1 << _BITS)


def _mixed(number: Tensor) -> Tensor:
    """Returns the finaliser of SplitMix64 of int64 numbers, whose products wrap around."""
    number = (number ^ _shifted(number, 30)) * _FIRST
    number = (number ^ _shifted(number, 27)) * _SECOND
    return number ^ _shifted(number, 31)


def _shifted(number: Tensor, by: int) -> Tensor:
    """Returns int64 numbers shifted to the right as if they had no sign."""
    return (number >> by) & ((1 << (64 - by)) - 1)
