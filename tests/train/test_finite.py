"""A loss that is not finite ends the run before its gradient reaches the weights, and the message says where."""

import math

import pytest
import torch
from transformers import TrainerCallback

from models import random_pairs
from runs import assert_same_weights, epoch_rows, make_trainer, weights_of
from simpo_trainer import SimPOTrainer
from simpo_trainer.errors import SimPOError

ROWS = random_pairs(12)


class BreakWeight(TrainerCallback):
    """Puts one NaN into a weight before a step, and keeps the weights as they are then."""

    def __init__(self, step: int):
        self.step = step
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step - 1:
            model.model.layers[1].mlp.up_proj.weight.data[3, 4] = math.nan
            self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_a_broken_weight_is_named_with_step_and_rows(tmp_path):
    """The steps before are taken, this one is not."""
    breaker = BreakWeight(2)
    trainer = make_trainer(tmp_path, ROWS, per_device_train_batch_size=4, arguments={"callbacks": [breaker]})
    with pytest.raises(SimPOError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("The loss is nan at optimiser step 2, in ")
    for row in epoch_rows([{"number": number, **row} for number, row in enumerate(ROWS)], global_batch=4)[4:8]:
        chosen, rejected = len(row["chosen_ids"]), len(row["rejected_ids"])
        assert f"row {row['number']} (chosen {chosen} tokens, rejected {rejected} tokens)" in message
    assert message.count("row ") == 4
    assert "the weights are those of step 1" in message
    assert "model.layers.1.mlp.up_proj.weight is not finite already" in message
    assert trainer.state.global_step == 1
    for name, weight in weights_of(trainer).items():
        torch.testing.assert_close(weight, breaker.weights[name], rtol=0, atol=0, equal_nan=True)


class OnePairDiverges(SimPOTrainer):
    """The loss of a pair with a large margin is infinite."""

    def pair_loss(self, chosen, rejected, *, margin):
        losses = super().pair_loss(chosen, rejected, margin=margin.clamp(max=1))
        return losses + torch.where(margin > 1, math.inf, 0.0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_only_the_pair_at_fault_is_named_by_the_data_s_own_row_number(tmp_path, accumulation):
    """Also in the second micro-batch of a step, whose first has left its gradient."""
    rows = [{**row, "row": 100 + place, "margin": 0.0} for place, row in enumerate(ROWS)]
    fault = epoch_rows(rows, global_batch=4 * accumulation)[7]
    rows[rows.index(fault)]["margin"] = 9.0
    trainer = make_trainer(
        tmp_path,
        rows,
        trainer_class=OnePairDiverges,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
    )
    before = weights_of(trainer)
    with pytest.raises(SimPOError, match=rf"The loss is inf at optimiser step {3 - accumulation}, in row ") as error:
        trainer.train()
    chosen, rejected = len(fault["chosen_ids"]), len(fault["rejected_ids"])
    assert f"in row {fault['row']} (chosen {chosen} tokens, rejected {rejected} tokens). Stopped" in str(error.value)
    assert "The weights are finite; lower learning_rate" in str(error.value)
    if accumulation == 2:
        assert_same_weights(weights_of(trainer), before, tolerance=0)
