"""Optimiser and schedule: a mistake in their settings is an error before anything is loaded."""

import pytest
import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from models import random_pairs
from runs import make_trainer
from simpo_trainer import SimPOConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run
from simpo_trainer.train.optimisation import check_optimisation

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


def check(folder, **settings):
    check_optimisation(SimPOConfig(str(folder), use_cpu=True, **settings).settled())


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimiser_is_built_or_refused(tmp_path, name):
    """What is refused here lacks a package; the message is that of transformers, which names it."""
    try:
        check(tmp_path, optim=name, lr_scheduler_type="constant")
    except SimPOError as error:
        assert str(error).startswith(f"optim is {name}, which cannot be built: ")
        assert "nstall" in str(error) or "import" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "sgd", "optim_args": "momentum=high"}, "optim is sgd, which cannot be built: could not convert"),
        ({"optim": "rmsprop", "optim_args": "momentum"}, "optim is rmsprop, which cannot be built: not enough"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"it needs num_decay_steps. Set lr_scheduler_kwargs: \{num_dec"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "One of min_lr or min_lr_rate should be set.*lr_scheduler_kwargs",
        ),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-8}}, "is cosine, and it does not take min_lr. Remove that from"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "polynomial, and it cannot be made: lr_end"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "rewards/accuracies", **EVALUATED},
            r"waits for rewards/accuracies to fall, and more of that is better. Set lr_scheduler_kwargs: \{mode: max\}",
        ),
        (
            {"optim": "schedule_free_adamw"},
            "averages weights in place of a schedule, and lr_scheduler_type is cosine, .* Set lr_scheduler_type: const",
        ),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, settings, message):
    with pytest.raises(SimPOError, match=message):
        check(tmp_path, **settings)


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule_can_be_made(tmp_path, kind):
    needed = {"warmup_stable_decay": {"num_decay_steps": 3}}
    needed |= dict.fromkeys(("cosine_with_min_lr", "cosine_warmup_with_min_lr"), {"min_lr": 1e-8})
    check(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=needed.get(kind), **EVALUATED)


def test_both_are_told_at_once(tmp_path):
    with pytest.raises(SimPOError, match="(?s)optim is sgd.*\n.*lr_scheduler_type is warmup_stable_decay"):
        check(tmp_path, optim="sgd", optim_args="momentum=a", lr_scheduler_type="warmup_stable_decay")


def test_ones_own_optimiser_and_schedule_are_not_built(tmp_path):
    settings = SimPOConfig(
        str(tmp_path), optim="sgd", optim_args="x", lr_scheduler_type="warmup_stable_decay"
    ).settled()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    check_optimisation(settings, (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)))


@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
def test_a_run_finds_it_before_its_data(tmp_path, method):
    (tmp_path / "r.yaml").write_text(
        f"method: {method}\nmodel_name_or_path: {tmp_path}\ndataset_name: {tmp_path}/missing.jsonl\n"
        f"output_dir: {tmp_path}/out\nlr_scheduler_type: warmup_stable_decay\nuse_cpu: true\n"
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SimPOError, match="it needs num_decay_steps"):
        run(load_recipe(tmp_path / "r.yaml"))


def test_a_trainer_finds_it_before_its_model(tmp_path):
    with pytest.raises(SimPOError, match="it needs num_decay_steps"):
        make_trainer(tmp_path, random_pairs(4), model="no/such-model", lr_scheduler_type="warmup_stable_decay")
