"""The losses in training: their own defaults, mixes, and one result whatever the layout and the split."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from models import as_text, random_pairs, tiny_model, word_tokenizer
from reference import in_float64, score_pairs
from runs import assert_same_run, make_trainer, train_log, weights_of
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.loss.losses import DEFAULTS, LOSSES
from simpo_trainer.loss.objective import Objective

ROWS = random_pairs(8, seed=5)
every_loss = pytest.mark.parametrize("name", LOSSES)


def config(tmp_path, **settings):
    return SimPOConfig(output_dir=str(tmp_path), **settings)


def slow_loss(rows, name, margins=0.0, **settings):
    """The loss of a run's first step from scores of one sequence at a time, in float64."""
    loss = LOSSES[name]
    values = DEFAULTS | loss.defaults | settings
    scored = score_pairs(in_float64(tiny_model()), rows)
    key = "sum" if loss.compares == "sum" else "average"
    sides = [torch.stack([getattr(answer, key) for answer in side]) for side in (scored.chosen, scored.rejected)]
    if "gamma_beta_ratio" in loss.uses:
        values["gamma_beta_ratio"] = values["gamma_beta_ratio"] + torch.as_tensor(margins)
    likelihood = -torch.stack([answer.average for answer in scored.chosen])
    losses = loss.function(*sides, **{key: values[key] for key in loss.uses})
    return (losses + settings.get("sft_weight", loss.sft_weight) * likelihood).mean().item()


def first_loss(tmp_path, rows=ROWS, **settings):
    trainer = make_trainer(tmp_path, rows, max_steps=1, **settings)
    trainer.train()
    return train_log(trainer, "loss")[0][0]


@pytest.mark.slow
@every_loss
def test_training_begins_at_the_slow_loss(tmp_path, name):
    assert first_loss(tmp_path, loss_type=name) == pytest.approx(slow_loss(ROWS, name), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LOSSES if "gamma_beta_ratio" in LOSSES[name].uses])
def test_margins_of_the_data_count(tmp_path, name):
    margins = [0.3 * number for number in range(len(ROWS))]
    rows = [{**row, "margin": margin} for row, margin in zip(ROWS, margins, strict=True)]
    found = first_loss(tmp_path, rows, loss_type=name)
    assert found == pytest.approx(slow_loss(ROWS, name, margins), rel=1e-4) != slow_loss(ROWS, name)


def test_margins_that_nobody_reads_are_said(tmp_path, caplog):
    rows = [{**row, "margin": 0.1} for row in ROWS]
    for loss_type, told in (("ipo", True), ("sigmoid", False), (["ipo", "sigmoid"], False)):
        caplog.clear()
        make_trainer(tmp_path, rows, loss_type=loss_type)
        assert ("the margins of the data have no effect on the loss ipo" in caplog.text) == told


@pytest.mark.slow
def test_the_documented_loss_of_ones_own_runs_with_a_recipe(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def pair_loss" in block)
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(as_text(row)) for row in ROWS))
    (tmp_path / "my.yaml").write_text(
        f"model_name_or_path: {tmp_path}/model\ndataset_name: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n"
        "max_length: 64\nmax_prompt_length: 32\nmax_steps: 1\nuse_cpu: true\nper_device_train_batch_size: 8\n"
    )
    monkeypatch.setattr("sys.argv", ["mine.py", str(tmp_path / "my.yaml"), "--learning_rate", "1e-3"])
    exec(example, {"__name__": "__main__"})
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    scored = score_pairs(in_float64(tiny_model()), ROWS)
    floor = sum(max(0.0, -2.0 - answer.average.item()) for answer in scored.chosen) / len(ROWS)
    assert floor > 1
    assert history[-1]["train_loss"] == pytest.approx(slow_loss(ROWS, "sigmoid") + floor, rel=0.2)  # other ids, as text
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["own_loss"] == "LogisticWithFloor"
    assert "Loss: that of the trainer class `LogisticWithFloor`." in (tmp_path / "out" / "README.md").read_text()


# The rates are such that two steps move the weights by something that differs from rounding.
RATES = {"slic": 1e-3, "cpo": 1e-2, "alphapo": 1e-4}


@pytest.mark.slow
@every_loss
def test_the_split_and_the_layout_change_nothing(tmp_path, name):
    settings = {"loss_type": name, "max_steps": 2, "learning_rate": RATES.get(name, 0.02)}
    whole = make_trainer(tmp_path / "whole", ROWS, batch_layout="padded", **settings)
    before = weights_of(whole)
    whole.train()
    assert any(not torch.equal(before[key], value) for key, value in weights_of(whole).items())
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "batch_layout": "packed"}
    other = make_trainer(tmp_path / "other", ROWS, **settings, **split)
    other.train()
    assert_same_run(other, whole, tolerance=2e-3)


@pytest.mark.slow
@every_loss
def test_an_adapter_learns(tmp_path, name):
    arguments = {"peft_config": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)}
    settings = {"loss_type": name, "max_steps": 2, "learning_rate": RATES.get(name, 0.02)}
    trainer = make_trainer(tmp_path, ROWS, arguments=arguments, **settings)
    before = weights_of(trainer)
    trainer.train()
    changed = {key for key, value in weights_of(trainer).items() if not torch.equal(before[key], value)}
    assert changed and all("lora" in key for key in changed)


# ---- Defaults ----


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.0, "sft_weight": 0.0, "alpha": None}),
        ({"loss_type": "cpo"}, {"beta": 0.1, "gamma_beta_ratio": None, "sft_weight": 1.0}),
        ({"loss_type": "cpo", "sft_weight": 0.0, "beta": 0.05}, {"beta": 0.05, "sft_weight": 0.0}),
        ({"loss_type": "robust"}, {"beta": 2.0, "label_smoothing": 0.1}),
        ({"loss_type": "alphapo"}, {"beta": 2.5, "gamma_beta_ratio": 0.04, "alpha": 0.25}),
        ({"loss_type": "simper"}, {"beta": None, "sft_weight": 0.0}),
        ({"loss_type": ["sigmoid", "ipo"]}, {"beta": None, "gamma_beta_ratio": 0.5}),
        ({"loss_type": ["sigmoid", "robust"]}, {"beta": 2.0, "label_smoothing": None}),
    ],
)
def test_what_is_left_open_is_the_losss_own(tmp_path, settings, expected):
    args = config(tmp_path, **settings).settled()
    assert {name: getattr(args, name) for name in expected} == expected


def test_each_part_of_a_mix_has_its_own_defaults_and_what_is_given_holds_for_all(tmp_path):
    parts = {part.name: part.settings for part in config(tmp_path, loss_type=["sigmoid", "ipo"]).objective.parts}
    assert parts["sigmoid"]["beta"] == 2.0 and parts["ipo"]["beta"] == 1.0
    given = config(tmp_path, loss_type=["sigmoid", "ipo"], beta=3.0).objective
    assert [part.settings["beta"] for part in given.parts] == [3.0, 3.0]


def test_the_objective_is_what_the_settings_are_now(tmp_path):
    args = config(tmp_path)
    args.beta = 7.0
    assert isinstance(args.objective, Objective) and args.objective.reward_scale == 7.0


@pytest.mark.parametrize(
    ("settings", "averages", "target"),
    [
        ({}, True, 0.5),
        ({"average_log_prob": False}, False, 0.5),
        ({"loss_type": "cpo"}, False, None),
        ({"loss_type": "orpo", "average_log_prob": False}, True, None),
        ({"loss_type": "alphapo"}, True, None),  # its margin is one of another reward
        ({"loss_type": ["slic", "orpo"]}, True, None),
    ],
)
def test_what_metrics_show(tmp_path, settings, averages, target):
    objective = config(tmp_path, **settings).objective
    assert (objective.compares_averages, objective.target_margin) == (averages, target)
    assert objective.unit == ("nats per token" if averages else "nats")


# ---- Mixes ----


@pytest.mark.slow
@every_loss
def test_a_mix_of_one_is_that_loss(tmp_path, name):
    alone = first_loss(tmp_path / "alone", loss_type=name)
    assert first_loss(tmp_path / "mix", loss_type=[name], loss_weights=[1.0]) == alone


@pytest.mark.slow
def test_a_mix_is_the_weighted_sum_and_logs_its_parts(tmp_path):
    settings = {"loss_type": ["sigmoid", "ipo", "cpo"], "loss_weights": [0.7, 0.3, 0.25]}
    trainer = make_trainer(tmp_path, ROWS, max_steps=1, **settings, eval_dataset=Dataset.from_list(ROWS))
    evaluated = trainer.evaluate()
    trainer.train()
    found, preference, *parts, likelihood = train_log(
        trainer, "loss", "preference_loss", "losses/sigmoid", "losses/ipo", "losses/cpo", "sft_loss"
    )[0]
    for name, part in zip(settings["loss_type"], parts, strict=True):
        assert part == pytest.approx(slow_loss(ROWS, name, sft_weight=0.0), rel=1e-4)
    assert preference == pytest.approx(0.7 * parts[0] + 0.3 * parts[1] + 0.25 * parts[2])
    # The likelihood term of cpo comes with the weight of cpo.
    assert found == pytest.approx(preference + 0.25 * likelihood)
    assert evaluated["eval_loss"] == pytest.approx(found, rel=1e-5)


class FlooredMix(SimPOTrainer):
    """The mix of the settings and a term of its own, as the README has one."""

    def pair_loss(self, chosen, rejected, *, margin):
        return super().pair_loss(chosen, rejected, margin=margin) + (-2.0 - chosen.average).clamp(min=0)


def test_a_loss_of_ones_own_has_no_parts_to_log(tmp_path):
    """The parts of `loss_type` do not add up to it, if it trains them at all."""
    trainer = make_trainer(
        tmp_path,
        ROWS,
        trainer_class=FlooredMix,
        loss_type=["sigmoid", "ipo"],
        max_steps=1,
        eval_dataset=Dataset.from_list(ROWS),
    )
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry} | set(trainer.evaluate())
    assert {"preference_loss", "eval_preference_loss"} < logged
    assert not [name for name in logged if "losses/" in name]


def test_targets_of_a_mix_stay_their_own(tmp_path):
    rows = [{**row, "margin": 0.2} for row in ROWS]
    trainer = make_trainer(tmp_path, rows, max_steps=1, loss_type=["sigmoid", "alphapo"])
    trainer.train()
    for name in ("sigmoid", "alphapo"):
        assert train_log(trainer, f"losses/{name}")[0][0] == pytest.approx(slow_loss(ROWS, name, 0.2), rel=1e-4)


@pytest.mark.parametrize("reduction", ["sequence", "token", "sum"])
def test_the_likelihood_term_in_each_reduction(tmp_path, reduction):
    scored = score_pairs(in_float64(tiny_model()), ROWS)
    sums = torch.stack([answer.sum for answer in scored.chosen])
    lengths = torch.tensor([len(row["chosen_ids"]) for row in ROWS])
    expected = {"sequence": (sums / lengths).mean(), "token": sums.sum() / lengths.sum(), "sum": sums.mean()}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    found = first_loss(tmp_path, loss_type="rrhf", sft_weight=0.5, sft_reduction=reduction, **split)
    plain = slow_loss(ROWS, "rrhf", sft_weight=0.0)
    assert found == pytest.approx(plain - 0.5 * expected[reduction].item(), rel=1e-4)
