"""Memory that runs out is an error that says which settings need less, with the same optimiser steps."""

import pytest

from models import random_pairs
from runs import assert_same_run, make_trainer
from simpo_trainer import SimPOTrainer
from simpo_trainer.errors import SimPOError

ROWS = random_pairs(12)


class Small(SimPOTrainer):
    """An accelerator that has room for two rows."""

    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["pair_weight"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1},
            "Set per_device_train_batch_size: 3 (with gradient_accumulation_steps: 2 the steps stay the same)",
        ),
        (
            {"per_device_train_batch_size": 3, "global_batch_size": 6, "gradient_accumulation_steps": None},
            "Set per_device_train_batch_size: 1 (with global_batch_size the accumulation follows); or gradient_checkpo",
        ),
        (
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
            "Set per_device_train_batch_size: 1 (with gradient_accumulation_steps: 6 the steps stay the same); "
            "or a smaller max_length",
        ),
    ],
)
def test_what_needs_less_memory(tmp_path, settings, advice):
    with pytest.raises(SimPOError) as caught:
        make_trainer(tmp_path, ROWS, trainer_class=Small, **settings).train()
    assert str(caught.value).startswith("The memory was not enough behind optimiser step 0, with ")
    assert advice in str(caught.value)


@pytest.mark.slow
def test_the_advice_gives_the_same_steps(tmp_path):
    large = make_trainer(tmp_path / "6", ROWS, per_device_train_batch_size=6, gradient_accumulation_steps=1)
    small = make_trainer(
        tmp_path / "2", ROWS, trainer_class=Small, per_device_train_batch_size=2, gradient_accumulation_steps=3
    )
    for trainer in (large, small):
        trainer.train()
    assert_same_run(small, large, tolerance=1e-6)


def test_other_errors_stay_what_they_are(tmp_path):
    class Broken(SimPOTrainer):
        def training_step(self, *args, **kwargs):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        make_trainer(tmp_path, ROWS, trainer_class=Broken).train()
