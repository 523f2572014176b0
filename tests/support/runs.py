"""Whole training runs of tiny models, in settings in which equal gradients mean equal weights."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.batches.order import PairBatchSampler
from simpo_trainer.tokens.rows import TOKEN_COLUMNS

# Plain gradient descent: AdamW divides by the size of the gradient, so where that is almost nothing, rounding alone
# decides the step.
PLAIN_STEPS = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
}


def make_trainer(
    folder: Path,
    rows: list[dict[str, Any]] | None,
    *,
    model: PreTrainedModel | PeftModel | str | None = None,
    eval_dataset: Any = None,
    trainer_class: type[SimPOTrainer] = SimPOTrainer,
    config_class: type[SimPOConfig] = SimPOConfig,
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> SimPOTrainer:
    """A trainer of a tiny model on token rows.

    Args:
        folder: output folder.
        rows: training rows; None for no training set.
        arguments: further arguments of the trainer.
        settings: fields of the configuration, on top of `PLAIN_STEPS`.
    """
    return trainer_class(
        model=model or tiny_model(),
        args=config_class(output_dir=str(folder), use_cpu=True, **{**PLAIN_STEPS, **settings}),
        train_dataset=None if rows is None else Dataset.from_list(rows),
        eval_dataset=eval_dataset,
        processing_class=word_tokenizer(),
        **(arguments or {}),
    )


def watched_run(folder: Path, **settings: Any) -> SimPOTrainer:
    """A trained trainer with evaluations and samples, for tests of what it leaves."""
    usual = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2}
    held_out = Dataset.from_list(random_pairs(20, seed=1))
    trainer = make_trainer(
        folder, random_pairs(32), eval_dataset=held_out, **{**usual, "sample_prompts": 2, **settings}
    )
    trainer.train()
    return trainer


def train_log(trainer: SimPOTrainer, *names: str) -> list[tuple[float, ...]]:
    """Values of the named metrics in each training log of a run."""
    return [tuple(entry[name] for name in names) for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer: SimPOTrainer) -> dict[str, Tensor]:
    """A copy of the weights as they are now."""
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def epoch_rows(
    rows: list[dict[str, Any]], epoch: int = 0, seed: int = 42, global_batch: int = 8
) -> list[dict[str, Any]]:
    """The token rows in the order in which the trainer takes them."""
    lengths = [sum(len(row[name]) for name in TOKEN_COLUMNS) for row in rows]
    sampler = PairBatchSampler(len(rows), batch_size=global_batch, seed=seed, lengths=lengths)
    sampler.set_epoch(epoch)
    return [rows[draw.row] for batch in sampler for draw in batch]


def assert_same_run(found: SimPOTrainer, expected: SimPOTrainer, *, tolerance: float) -> None:
    """Losses of all steps and final weights are equal, up to `tolerance` times the largest number of each kind."""
    losses, reference = (torch.tensor(train_log(trainer, "loss", "grad_norm")) for trainer in (found, expected))
    torch.testing.assert_close(losses, reference, rtol=tolerance, atol=0)
    assert_same_weights(weights_of(found), weights_of(expected), tolerance=tolerance)


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float) -> None:
    """Equal up to `tolerance` times the largest element of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close = {"rtol": 0, "atol": tolerance * value.abs().max().item()}
        torch.testing.assert_close(found[name], value, **close, msg=lambda text, name=name: f"{name}: {text}")


class GradientRecorder(TrainerCallback):
    """Keeps the gradients that each optimiser step is made with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        named = model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def write_run(folder: Path, recipe: str, pairs: list[dict[str, Any]] | None = None) -> None:
    """Write `recipe.yaml`, the tiny `model` that it trains, and its pairs as `pairs.jsonl` if there are any."""
    tiny_model().save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(recipe)
    if pairs is not None:
        (folder / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in pairs))
