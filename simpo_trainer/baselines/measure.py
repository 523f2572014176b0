"""Log-probabilities of answers with a model that trl trains: sums over an answer's tokens, as trl logs them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..loss.metrics import MetricSums, accumulation_dtype
from ..model.modes import evaluating
from .rows import IGNORED

if TYPE_CHECKING:
    from .common import BaselineTrainer

# `input_ids` and `labels`.
Text = Mapping[str, list[int]]


def mean_log_prob(trainer: "BaselineTrainer", texts: Sequence[Text]) -> float:
    """Returns the mean over texts of their log-probability in nats, summed over the tokens that have a label.

    Every process must call it.

    Args:
        trainer: a trainer with a model that is ready to train.
        texts: at least one text.
    """
    accelerator, model = trainer.accelerator, trainer.model_wrapped
    size = trainer.args.train_batch_size  # training has enough memory for this size
    sums = MetricSums()
    with evaluating(model):
        for first in range(0, len(texts), size * accelerator.num_processes):
            begin = first + size * accelerator.process_index
            mine = texts[begin : begin + size]
            # All processes gather sharded weights together: one without a text of its own runs the model on the first.
            scores = _log_probs(trainer, model, mine or texts[:1])[: len(mine)]
            sums.add({"logps": torch.stack([scores.sum(), scores.new_tensor(len(mine))])})
    return sums.reduce(accelerator)["logps"]


def _log_probs(trainer: "BaselineTrainer", model: nn.Module, texts: Sequence[Text]) -> Tensor:
    """Returns the log-probability of each text, using the scoring forward that trl gives its models."""
    device = trainer.accelerator.device
    ids, labels, attended = (
        pad_sequence([torch.tensor(values) for values in column], batch_first=True, padding_value=filler).to(device)
        for column, filler in (
            ([text["input_ids"] for text in texts], 0),
            ([text["labels"] for text in texts], IGNORED),
            ([[1] * len(text["input_ids"]) for text in texts], 0),
        )
    )
    with torch.no_grad(), trainer.compute_loss_context_manager():
        scored = model(input_ids=ids, attention_mask=attended, labels=labels, use_cache=False, fused_lm_head=True)
    return scored.log_probs.to(accumulation_dtype(device)).sum(1)
