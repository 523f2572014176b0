"""Which mode a model is in, whatever it is wrapped in."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from models import random_pairs, tiny_model
from runs import make_trainer
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.model.load import describe, weight_size
from simpo_trainer.model.modes import evaluating, in_training


class Engine(nn.Module):
    """Switches its module alone and keeps a flag of its own, as DeepSpeed's engine does."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> "Engine":
        self.module.train(mode)
        return self

    def eval(self) -> "Engine":
        return self.train(False)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("wrap", [lambda model: model, Engine, lambda model: Engine(Engine(model))])
def test_the_mode_is_that_of_the_innermost_module(wrap):
    inner = nn.Dropout()
    model = wrap(inner)
    model.train()
    with evaluating(model):
        assert not inner.training
        assert not in_training(model)
    assert inner.training
    assert in_training(model)


def test_a_model_that_was_not_training_stays_so():
    model = Engine(nn.Dropout()).eval()
    with evaluating(model):
        pass
    assert not in_training(model)


def test_the_metrics_of_an_evaluation_are_not_those_of_the_training_for_an_engine_either(tmp_path):
    """`KeyError: 'logps/margins'` at the start of every DeepSpeed run came from metrics in the wrong sums."""
    rows = random_pairs(4)
    trainer = make_trainer(tmp_path, rows, model=tiny_model())
    trainer.model_wrapped = engine = Engine(trainer.model)
    assert "logps/margins" in trainer.measure(trainer.rows_to_measure(4))
    batch = dict(PairCollator(0)(rows))
    engine.eval()
    trainer.compute_loss(engine, batch)
    assert not trainer._train_sums.reduce(trainer.accelerator)
    engine.train()
    trainer.compute_loss(engine, batch)
    assert "logps/margins" in trainer._train_sums.reduce(trainer.accelerator)


def test_a_weight_that_lies_elsewhere_has_its_whole_size():
    model = nn.Linear(3, 4, bias=False)
    model.weight.data = model.weight.data.new_empty(0)
    model.weight.ds_numel = 12
    assert weight_size(model.weight) == 12
    assert describe(model) == "12 parameters, 12 of them train (100.00%)"


def test_the_size_of_a_weight_of_which_two_numbers_are_in_a_byte():
    weight = torch.nn.Parameter(torch.zeros(6, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = SimpleNamespace(shape=torch.Size([3, 4]))
    assert weight_size(weight) == 12


@pytest.mark.parametrize(
    ("targets", "told"),
    [(["q_proj", "v_proj"], "by LORA of rank 2 on q_proj, v_proj"), (["down_proj"], "by LORA of rank 2 on down_proj")],
)
def test_the_size_of_a_model_tells_what_adapts(targets, told):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=targets, r=2))
    assert describe(model).endswith(told)
    assert "by " not in describe(tiny_model())
