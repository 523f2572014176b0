"""The CPU does not wait for the accelerator within a micro-batch: nothing is read before the optimiser step."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import ARCHITECTURES, random_pairs, tiny_model
from runs import assert_same_run, make_trainer
from simpo_trainer import SimPOTrainer
from simpo_trainer.batches.batch import PairCollator

ROWS = [{**row, "margin": 0.1 * place} for place, row in enumerate(random_pairs(16))]
# What an accelerator is waited for: a value, or a shape that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor", "bincount")


class Waits(TorchDispatchMode):
    """Notes what this package does that would wait for an accelerator; what a model's own code does is not ours."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        lists = [argument for argument in args if isinstance(argument, list | tuple)]
        by_mask = "index" in str(func) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for indices in lists for index in indices
        )
        if (by_mask or any(wait in str(func) for wait in WAITS)) and _is_ours(sys._getframe(1)):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_ours(frame):
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return "/transformers/" not in frame.f_code.co_filename


class Watched(SimPOTrainer):
    """Notes what is waited for in the losses of training."""

    def compute_loss(self, *args, **kwargs):
        with Waits() as watch:
            loss = super().compute_loss(*args, **kwargs)
        if self.model.training:
            self.waits = [*getattr(self, "waits", []), watch.found]
        return loss


def balanced(name):
    config = ARCHITECTURES[name]()
    config.output_router_logits = name == "mixtral"
    return tiny_model(config)


def watched(folder, **settings):
    """A run of two optimiser steps, each of two micro-batches."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    trainer = make_trainer(folder, ROWS, trainer_class=Watched, **split, **settings)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "shared_prefix", "packed"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])  # mixtral has a sliding window
@pytest.mark.parametrize("settings", [{}, {"loss_type": ["sigmoid", "cpo"], "sft_reduction": "token"}])
def test_no_value_is_read_in_a_micro_batch(tmp_path, layout, name, settings):
    trainer = watched(tmp_path, model=balanced(name), batch_layout=layout, **settings)
    assert trainer.waits == [[], [], [], []]


class Moving(PairCollator):
    """A collator of a user's: one more column on the left, behind which all places have moved."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        padding = {"input_ids": 0, "attention_mask": 0, "position_ids": 0, "shift_labels": -100, "response_index": 0}
        for name, value in padding.items():
            batch[name] = torch.cat([torch.full((len(batch[name]), 1), value), batch[name]], 1)
        return batch


class Numbering(PairCollator):
    """A collator that gives a plain number of answers."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        return {**batch, "num_responses": int(batch["num_responses"])}


@pytest.mark.slow
@pytest.mark.parametrize("collator", [Moving, Numbering])
def test_a_collator_of_ones_own_need_not_know(tmp_path, collator):
    plain = watched(tmp_path / "plain", batch_layout="padded")
    own = watched(tmp_path / "own", arguments={"data_collator": collator()})
    assert own.waits == [[], [], [], []]
    assert_same_run(own, plain, tolerance=1e-5)
