"""The first loss that is not finite ends the run before its gradient reaches the weights, saying where it came from."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from ..batches.batch import Batch
from ..errors import SimPOError
from ..model.scoring import AnswerScores


@dataclass(frozen=True)
class _Noted:
    """The parts of a micro-batch that a message needs: its loss, the loss of each pair (N,), its pairs, its answers."""

    loss: Tensor
    losses: Tensor
    pairs: dict[str, Tensor]
    answers: AnswerScores


class FiniteCheck:
    """Refuses a loss that is NaN or infinite, with one look at the accelerator for a whole optimiser step."""

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def begin(self) -> None:
        """Begin an optimiser step: what one that was given up has left is not this one's."""
        self._noted = []

    def note(self, loss: Tensor, losses: Tensor, batch: Batch, answers: AnswerScores) -> None:
        """Keep what is to be looked at later, without reading it.

        Args:
            loss: loss of the micro-batch, shape ().
            losses: preference loss of each pair, (N,).
            batch: the micro-batch.
            answers: scores of its answers.
        """
        pairs = {"row": batch["row"], "chosen": batch["chosen"], "rejected": batch["rejected"]}
        scores = AnswerScores(*(value.detach() for value in vars(answers).values()))
        self._noted.append(_Noted(loss.detach(), losses.detach(), pairs, scores))

    def check(self, model: nn.Module, step: int, accelerator: Accelerator | None = None) -> None:
        """Look at what was noted since the last call.

        Args:
            model: searched for the weight that broke, if any did.
            step: optimiser steps taken so far.
            accelerator: asks the other processes too, whose gradients are in this one's sum; all of them must call it.

        Raises:
            SimPOError: names step, rows, their lengths, and a weight that is not finite itself.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        broken = ~torch.isfinite(torch.stack([micro_batch.loss for micro_batch in noted]))
        count = broken.any().float()
        if accelerator is not None and accelerator.num_processes > 1:
            count = accelerator.reduce(count, reduction="sum")
        if not count:
            return
        own = [micro_batch for micro_batch, is_broken in zip(noted, broken.tolist(), strict=True) if is_broken]
        if not own:
            raise SimPOError(
                f"The loss of another process is not finite at optimiser step {step + 1}; its message names the rows. "
                f"Stopped before the step: the weights are those of step {step}."
            )
        raise _refusal(own[0], model, step)


class FiniteCallback(TrainerCallback):
    """Looks at the losses of an optimiser step before it is made."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.finite.check(kwargs["model"], state.global_step, self.trainer.accelerator)


def steps_in_backward(args: TrainingArguments, is_deepspeed: bool) -> bool:
    """Returns whether weights change within the backward pass, so that a loss must be checked before it."""
    return is_deepspeed or any(part in OptimizerNames(args.optim).value for part in ("lomo", "layerwise"))


def _refusal(found: _Noted, model: nn.Module, step: int) -> SimPOError:
    losses, answers, columns = found.losses, found.answers, found.pairs
    bad = ~torch.isfinite(losses + answers.sum[columns["chosen"]])
    pairs = zip(*(columns[name].tolist() for name in ("row", "chosen", "rejected")), bad.tolist(), strict=True)
    rows = [
        f"row {row} (chosen {int(answers.length[chosen])} tokens, rejected {int(answers.length[rejected])} tokens)"
        for row, chosen, rejected, is_bad in pairs
        if is_bad or not bad.any()
    ]
    broken = next((name for name, weight in model.named_parameters() if not _is_finite(weight)), None)
    cause = (
        f"The weight {broken} is not finite already; start from an intact checkpoint."
        if broken
        else "The weights are finite; lower learning_rate, use bf16 instead of fp16, and look at these rows."
    )
    return SimPOError(
        f"The loss is {found.loss.item()} at optimiser step {step + 1}, in {'; '.join(rows)}. "
        f"Stopped before the step: the weights are those of step {step}. {cause}"
    )


def _is_finite(weight: Tensor) -> bool:
    """Returns whether this process's part of a weight is finite; the others, whose loss is finite, do not take part."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return bool(torch.isfinite(local).all())
