"""The first loss that is not finite ends the run before its gradient reaches the weights, saying where it came from."""

import torch
from torch import Tensor, nn

from ..batches.batch import Batch
from ..errors import SimPOError
from ..model.scoring import AnswerScores


def check_finite(
    loss: Tensor, losses: Tensor, batch: Batch, answers: AnswerScores, *, model: nn.Module, step: int
) -> None:
    """Refuse a loss that is NaN or infinite.

    Args:
        loss: loss of the micro-batch, shape ().
        losses: preference loss of each pair, (N,).
        batch: the micro-batch.
        answers: scores of its answers.
        model: searched for the weight that broke, if any did.
        step: optimiser steps taken so far.

    Raises:
        SimPOError: names step, rows, their lengths, and a weight that is not finite itself.
    """
    if torch.isfinite(loss):
        return
    bad = ~torch.isfinite(losses + answers.sum[batch["chosen"]])
    pairs = zip(batch["row"].tolist(), batch["chosen"].tolist(), batch["rejected"].tolist(), bad.tolist(), strict=True)
    rows = [
        f"row {row} (chosen {int(answers.length[chosen])} tokens, rejected {int(answers.length[rejected])} tokens)"
        for row, chosen, rejected, is_bad in pairs
        if is_bad or not bad.any()
    ]
    broken = next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    cause = (
        f"The weight {broken} is not finite already; start from an intact checkpoint."
        if broken
        else "The weights are finite; lower learning_rate, use bf16 instead of fp16, and look at these rows."
    )
    raise SimPOError(
        f"The loss is {loss.item()} at optimiser step {step + 1}, in {'; '.join(rows)}. "
        f"Stopped before the step: the weights are those of step {step}. {cause}"
    )
