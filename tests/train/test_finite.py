"""A loss that is not finite ends the run before its gradient reaches the weights, and the message says where."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, TrainingArguments

from models import random_pairs
from runs import assert_same_weights, epoch_rows, make_trainer, weights_of
from simpo_trainer import SimPOTrainer
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.scoring import AnswerScores
from simpo_trainer.train.finite import FiniteCheck, steps_in_backward

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


def test_a_loss_outside_of_training_is_refused_at_once(tmp_path):
    """In a loop of one's own, no optimiser step of the trainer would come to look at it."""
    rows = [{**row, "margin": 9.0 * (place == 5)} for place, row in enumerate(ROWS)]
    trainer = make_trainer(tmp_path, rows, trainer_class=OnePairDiverges)
    trainer.model.train()
    batch = PairCollator()([{"row": place, **row} for place, row in enumerate(rows)])
    with pytest.raises(SimPOError, match=r"The loss is inf at optimiser step 1, in row 5 \(chosen"):
        trainer.compute_loss(trainer.model, batch)


class ReadsCounted(TorchDispatchMode):
    """Counts how often a value is read."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_one_look_at_a_whole_step():
    check, scores = FiniteCheck(), AnswerScores(*torch.ones(4, 2))
    batch = {"row": torch.tensor([3]), "chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    with ReadsCounted() as reads:
        for _ in range(8):
            check.note(torch.tensor(1.0), torch.ones(1), batch, scores)
        assert reads.count == 0
        check.check(torch.nn.Linear(1, 1), 0)
        check.check(torch.nn.Linear(1, 1), 0)
        assert reads.count == 1
    check.note(torch.tensor(math.nan), torch.ones(1), batch, scores)
    check.begin()  # the step that it was noted in was given up
    check.check(torch.nn.Linear(1, 1), 0)


@pytest.mark.parametrize(
    ("optim", "deepspeed", "expected"),
    [("adamw_torch", False, False), ("adamw_torch", True, True), ("adalomo", False, True)]
    + [("galore_adamw_layerwise", False, True)],
)
def test_where_weights_change_in_the_backward_pass(tmp_path, optim, deepspeed, expected):
    """There each micro-batch must be looked at before it."""
    assert steps_in_backward(TrainingArguments(str(tmp_path), use_cpu=True, optim=optim), deepspeed) == expected
