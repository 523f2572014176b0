"""A metric is one line of a table: the log line, the card and the curves have it from there."""

import pytest
from datasets import Dataset

from models import random_pairs
from runs import make_trainer
from simpo_trainer.record import metric_table
from simpo_trainer.record.metric_table import PAIR_METRICS, TEXT_METRICS, Metric, metrics_of
from simpo_trainer.results import training_curves as curves_module
from simpo_trainer.train.progress import log_line


@pytest.mark.slow
def test_a_metric_is_shown_everywhere_by_one_line(tmp_path, monkeypatch):
    toy = Metric("toy/score", ("toy", ".1f"), ("toy score, {unit}", ".2f"), ("Toy panel", "{unit}"))
    monkeypatch.setattr(metric_table, "PAIR_METRICS", (*PAIR_METRICS, toy))
    drawn = []
    monkeypatch.setattr(
        curves_module, "finish_panel", lambda axis, **given: drawn.append((axis.get_title(), axis.get_ylabel()))
    )
    rows = random_pairs(8)
    trainer = make_trainer(tmp_path, rows, max_steps=2, eval_dataset=Dataset.from_list(rows[:4]))
    plain = trainer.log
    trainer.log = lambda logs, *rest: plain({**logs, "toy/score": 1.25, "eval_toy/score": 2.5}, *rest)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    assert "  toy 1.2" in log_line(trainer.state.log_history[0], 1, 2)
    assert "| toy score, nats per token | 1.25 | 2.50 |" in (tmp_path / "README.md").read_text()
    assert ("Toy panel", "nats per token") in drawn and len(drawn) == 7


@pytest.mark.parametrize("table", [PAIR_METRICS, TEXT_METRICS])
def test_each_metric_has_one_line(table):
    names = [metric.name for metric in table]
    assert len(set(names)) == len(names)


def test_texts_are_told_from_pairs_by_what_is_logged():
    assert metrics_of(["loss", "eval_mean_token_accuracy"])[0] is TEXT_METRICS
    # DPO by trl logs both.
    assert metrics_of(["mean_token_accuracy", "rewards/accuracies"])[0] is PAIR_METRICS
    assert metrics_of(["loss"])[0] is PAIR_METRICS
