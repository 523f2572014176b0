"""trl's CPO trainer in SimPO mode for the benchmark. Imported for its row alone: the others need no such trl."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import Trainer
from trl.experimental.cpo import CPOConfig, CPOTrainer


class TokenRowsCPOTrainer(CPOTrainer):
    """trl's trainer on rows that hold token ids already, which its own `tokenize_row` would make of text."""

    def tokenize_row(self, feature: dict[str, Any], model: nn.Module | None = None) -> dict[str, list[int]]:
        """The columns that trl's collator wants."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        return row


def trl_trainer(
    model: Any, pairs: Dataset, output: str, target_margin: float, settings: dict[str, Any], shared: dict[str, Any]
) -> Trainer:
    """The trainer over pairs in this order.

    Args:
        target_margin: gamma, which is beta times its ratio.
        settings: those that both trainers have.
        shared: arguments of both trainers.
    """
    args = CPOConfig(
        output,
        num_train_epochs=1,
        loss_type="simpo",
        cpo_alpha=0.0,
        simpo_gamma=target_margin,
        train_sampling_strategy="sequential",
        **settings,
    )
    return TokenRowsCPOTrainer(model, args, train_dataset=pairs, **shared)
