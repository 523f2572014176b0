"""The metric of the best model: it is measured, and more or less of it is better."""

import pytest

from models import ARCHITECTURES, random_pairs, tiny_model
from runs import make_trainer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.record.metric_table import evaluated_name, measured_names
from simpo_trainer.run.one_run import run
from simpo_trainer.train.evaluation import absent_metrics

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
ROWS = random_pairs(4)


def mixtral():
    config = ARCHITECTURES["mixtral"]()
    config.output_router_logits = True
    return tiny_model(config)


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, None),
        ({"loss_type": "ipo"}, None),
        ({"loss_type": ["sigmoid", "cpo"]}, None),
        ({"loss_type": "simper"}, None),
        ({}, mixtral),
    ],
)
def test_the_names_are_those_of_an_evaluation(tmp_path, settings, model):
    trainer = make_trainer(tmp_path, ROWS, eval_dataset=ROWS, model=model() if model else tiny_model(), **settings)
    found = {name.removeprefix("eval_") for name in trainer.evaluate()} - {"epoch", "model_preparation_time"}
    parts = {name for name in found if name.startswith("losses/")}
    absent = absent_metrics(trainer.args.objective, parts=bool(parts), balanced=model is not None)
    assert found == (set(measured_names()) | parts) - absent
    assert all(evaluated_name(f"eval_helpful_{name}") == name for name in found)


@pytest.mark.parametrize(
    ("metric", "more"),
    [
        ("loss", False),
        ("eval_loss", False),
        ("losses/sigmoid", False),
        ("eval_losses/cpo", False),
        ("eval_easy_losses/cpo", False),
        ("eval_sft_loss", False),
        ("eval_rewards/margins", True),
        ("eval_easy_logps/past_target", True),
        ("my_own", True),
        ("my_own_loss", False),
    ],
)
def test_the_better_direction(tmp_path, metric, more):
    args = SimPOConfig(str(tmp_path), metric_for_best_model=metric)
    assert args.greater_is_better is None and args.settled().greater_is_better is more
    other = SimPOConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=not more)
    assert other.settled().greater_is_better is not more


@pytest.mark.parametrize("metric", ["eval_logps/rejected", "lengths/chosen", "eval_easy_runtime", "entropy"])
def test_neither_more_nor_less_is_better(tmp_path, metric):
    with pytest.raises(
        SimPOError, match=f"metric_for_best_model is {metric}, of which neither .* Set greater_is_better"
    ):
        SimPOConfig(str(tmp_path), metric_for_best_model=metric)
    SimPOConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=False)


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        ("bleu", {}, "bleu, which no evaluation .*It must be one of loss, "),
        ("eval_rewards/accuracy", {}, "Did you mean rewards/accuracies"),
        ("eval_aux_loss", {}, "which no evaluation of this run measures"),
        ("logps/past_target", {"loss_type": "ipo"}, "which no evaluation of this run measures"),
        ("losses/sigmoid", {}, "which no evaluation of this run measures"),
        ("losses/ipo", {"loss_type": ["sigmoid", "cpo"]}, "which no evaluation of this run measures"),
        ("mean_token_accuracy", {}, "which no evaluation of this run measures"),
    ],
)
def test_what_is_not_measured_is_refused(tmp_path, metric, settings, message):
    settings = {"metric_for_best_model": metric, **EVALUATED, **settings}
    with pytest.raises(SimPOError, match=message):
        make_trainer(tmp_path, ROWS, eval_dataset=ROWS, **settings)
    own = {"compute_metrics": lambda found: {}}  # which may measure anything
    make_trainer(tmp_path, ROWS, eval_dataset=ROWS, arguments=own, **settings)
    make_trainer(tmp_path, ROWS, **{**settings, "eval_strategy": "no"})


def test_several_sets_put_their_names_in_front(tmp_path):
    sets = {"easy": ROWS, "hard_ones": ROWS}
    for metric in ("easy_loss", "eval_hard_ones_rewards/margins"):
        make_trainer(tmp_path, ROWS, eval_dataset=sets, metric_for_best_model=metric, **EVALUATED)
    with pytest.raises(SimPOError, match="eval_loss, which no evaluation .* Did you mean easy_loss"):
        make_trainer(tmp_path, ROWS, eval_dataset=sets, metric_for_best_model="eval_loss", **EVALUATED)


def test_parts_of_a_loss_of_ones_own_are_not_measured(tmp_path):
    class Own(SimPOTrainer):
        def pair_loss(self, chosen, rejected, *, margin):
            return rejected.average - chosen.average

    settings = {"loss_type": ["sigmoid", "cpo"], "metric_for_best_model": "losses/cpo", **EVALUATED}
    make_trainer(tmp_path, ROWS, eval_dataset=ROWS, **settings)
    with pytest.raises(SimPOError, match="which no evaluation of this run measures"):
        make_trainer(tmp_path, ROWS, eval_dataset=ROWS, trainer_class=Own, **settings)


@pytest.mark.parametrize(("method", "metric"), [("simpo", "entropy"), ("dpo", "sft_loss"), ("sft", "rewards/margins")])
def test_a_run_finds_it_before_its_data(tmp_path, method, metric):
    (tmp_path / "r.yaml").write_text(
        f"method: {method}\nmodel_name_or_path: {tmp_path}\ndataset_name: {tmp_path}/missing.jsonl\nuse_cpu: true\n"
        f"output_dir: {tmp_path}/out\neval_strategy: steps\nmetric_for_best_model: {metric}\ngreater_is_better: true\n"
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SimPOError, match=f"metric_for_best_model is {metric}, which no evaluation of this run"):
        run(load_recipe(tmp_path / "r.yaml"))
