"""Metrics as sums and counts: exact means over pairs or tokens for any ranks, micro-batches and log windows."""

from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..batches.batch import Batch
from ..model.scoring import AnswerScores


class MetricSums:
    """Running (sum, count) pairs that turn into means with one reduction over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add a (sum, count) tensor of shape (2,) per name; it stays on the device, without synchronisation."""
        for name, value in sums.items():
            value = value.detach().to(accumulation_dtype(value.device))
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def state(self) -> dict[str, list[float]]:
        """Returns this process's sum and count of each name, as JSON."""
        return {name: value.tolist() for name, value in self._sums.items()}

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over all processes since the last call, in one collective; every process must call it."""
        if not self._sums:
            return {}
        names = list(self._sums)
        totals = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum").tolist()
        self._sums = {}
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}


class PairRecords:
    """Log-probabilities and lengths of every pair of an evaluation, over all processes, in the order of the set."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, batch: Batch, logps: Tensor, lengths: Tensor) -> None:
        """Add a micro-batch: `logps` and `lengths` hold (chosen, rejected) of each pair, (N, 2)."""
        pairs = torch.stack([batch["pair_weight"], batch["index"], batch["pair_tokens"]], -1)
        self._rows.append(
            torch.cat([tensor.to(accumulation_dtype(logps.device)) for tensor in (pairs, logps, lengths)], -1)
        )

    def gather(self, accelerator: Accelerator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns log-probabilities (pairs, 2), lengths (pairs, 2) and tokens (pairs,) of all processes.

        Filler is left out, and the pairs of one row stay in their order. Every process must call it.
        """
        # Processes hold different numbers of pairs; padding rows have weight 0, like filler.
        rows = accelerator.pad_across_processes(torch.cat(self._rows), dim=0, pad_index=0)
        rows = accelerator.gather(rows).cpu().numpy()
        rows = rows[rows[:, 0] > 0]
        rows = rows[np.argsort(rows[:, 1], kind="stable")]
        return rows[:, 3:5], rows[:, 5:7].astype(int), rows[:, 2].astype(int)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 for a device without float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def pair_metrics(
    chosen: AnswerScores,
    rejected: AnswerScores,
    *,
    logps: tuple[Tensor, Tensor],
    losses: Tensor,
    parts: Mapping[str, Tensor],
    margin: Tensor | None,
    weight: Tensor,
    beta: float,
    sft_reduction: str,
) -> dict[str, Tensor]:
    """Returns (sum, count) of every metric of a micro-batch.

    Means are over pairs, but those of `logits/*`, and of `sft_loss` with `sft_reduction="token"`, over answer tokens.

    Args:
        chosen, rejected: scores of the two answers of each pair, fields of shape (N,).
        logps: the log-probabilities that the loss compares, chosen and rejected, (N,) each: per token (SimPO) or sums.
        losses: preference loss of each pair, (N,).
        parts: the losses of a mix by name, before their weights, (N,) each.
        margin: target margin of each pair in the unit of `logps`, (N,); None for a loss without one.
        weight: weight of each pair, (N,); 0 marks filler.
        beta: scale of the rewards.
        sft_reduction: "sequence", "token" or "sum".
    """
    chosen_logps, rejected_logps = logps
    difference = chosen_logps - rejected_logps
    values = {
        "preference_loss": losses,
        "sft_loss": -chosen.sum if sft_reduction == "sum" else -chosen.average,
        "rewards/chosen": beta * chosen_logps,
        "rewards/rejected": beta * rejected_logps,
        "rewards/accuracies": (difference > 0).to(difference.dtype),
        "rewards/margins": beta * difference,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        "logps/margins": difference,
        "lengths/chosen": chosen.length,
        "lengths/rejected": rejected.length,
        **{f"losses/{name}": values for name, values in parts.items()},
    }
    if margin is not None:
        values["logps/past_target"] = (difference > margin).to(difference.dtype)
    sums = {name: _ratio(value, torch.ones_like(value), weight) for name, value in values.items()}
    sums["logits/chosen"] = _ratio(chosen.logits_sum, chosen.length, weight)
    sums["logits/rejected"] = _ratio(rejected.logits_sum, rejected.length, weight)
    if sft_reduction == "token":
        sums["sft_loss"] = _ratio(-chosen.sum, chosen.length, weight)
    return sums


def _ratio(values: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """Returns weighted sums of values and counts, (2,). Filler is left out by a mask, because 0 * nan is nan."""
    both = torch.stack([values, counts]).detach() * weight
    return torch.where(weight > 0, both, 0.0).sum(-1)
