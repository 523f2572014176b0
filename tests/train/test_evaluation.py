"""Evaluation: means over the pairs of a set, whatever the batch size, and what is built on them."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from models import as_text, random_pairs, tiny_model
from reference import ScoredPairs, Settings, in_float64, score_pairs, tokens_of
from runs import assert_same_run, assert_same_weights, make_trainer, weights_of
from simpo_trainer import SimPOTrainer
from simpo_trainer.batches.batch import PairCollator

TRAIN = random_pairs(16)
PAIRS = [{**row, "margin": 0.1 * place} for place, row in enumerate(random_pairs(7, seed=1))]
EVAL = Dataset.from_list(PAIRS)
OTHERS = [row for row in random_pairs(8, seed=2) if min(map(len, row.values())) > 1]
OTHERS_AS_TEXT = Dataset.from_list([as_text(row) for row in OTHERS])


@pytest.fixture(scope="module")
def slow():
    return in_float64(tiny_model())


def expected_metrics(scored: ScoredPairs, prefix: str) -> dict[str, float]:
    """All that is reported of a set, without the timings."""
    counts = {"num_pairs": len(scored.rows), "num_tokens": tokens_of(scored.rows)}
    return {f"{prefix}_{name}": value for name, value in (scored.metrics() | counts).items()}


def without_timings(metrics: dict[str, float]) -> dict[str, float]:
    others = ("_runtime", "_per_second", "_time", "epoch")
    return {name: value for name, value in metrics.items() if not name.endswith(others)}


def close(expected: dict[str, float]):
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"loss_type": "hinge", "sft_weight": 0.3},
        {"sft_weight": 0.3, "sft_reduction": "token", "label_smoothing": 0.1},
        {"average_log_prob": False, "beta": 0.2},
    ],
    ids=["simpo", "hinge", "sft by token", "sums"],
)
def test_every_metric_equals_the_reference(tmp_path, slow, objective):
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL, per_device_eval_batch_size=3, **objective)
    found = without_timings(trainer.evaluate())
    assert found == close(expected_metrics(score_pairs(slow, PAIRS, Settings(**objective)), "eval"))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8])
def test_the_batch_size_does_not_matter(tmp_path, slow, batch_size):
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL, per_device_eval_batch_size=batch_size)
    assert without_timings(trainer.evaluate()) == close(expected_metrics(score_pairs(slow, PAIRS), "eval"))


def test_several_sets_are_reported_by_name(tmp_path, slow):
    """Token rows or text, given to the trainer or later; one of them alone by its name, or under another."""
    sets = {"first": EVAL, "second": OTHERS_AS_TEXT}
    first, second = (score_pairs(slow, rows) for rows in (PAIRS, OTHERS))
    both = expected_metrics(first, "eval_first") | expected_metrics(second, "eval_second")
    trainer = make_trainer(tmp_path, None, eval_dataset=sets)
    assert without_timings(trainer.evaluate()) == close(both)
    assert without_timings(trainer.evaluate("second")) == close(expected_metrics(second, "eval"))
    other = make_trainer(tmp_path, None, eval_dataset=EVAL)
    assert without_timings(other.evaluate(sets)) == close(both)
    assert without_timings(other.evaluate(EVAL, metric_key_prefix="again")) == close(expected_metrics(first, "again"))


def test_a_raw_set_may_be_given_later(tmp_path, slow):
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL)
    scored = score_pairs(slow, OTHERS)
    assert without_timings(trainer.evaluate(OTHERS_AS_TEXT)) == close(expected_metrics(scored, "eval"))
    output = trainer.predict(OTHERS_AS_TEXT)
    assert without_timings(output.metrics) == close(expected_metrics(scored, "test"))
    assert output.predictions == pytest.approx(np.array(averages(scored)), rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_record_tells_of_the_sets_of_the_run_alone(tmp_path, several):
    """Another set that is evaluated has the same name, and a set to predict on is none of the run's."""
    own = OTHERS_AS_TEXT.select([0])
    trainer = make_trainer(
        tmp_path, [as_text(row) for row in OTHERS], eval_dataset={"a": own} if several else own, num_train_epochs=1
    )
    before = dict(trainer.token_sets)
    assert {name: found.report.rows_read for name, found in before.items()} == {
        "train": len(OTHERS),
        "eval_a" if several else "eval": 1,
    }
    trainer.evaluate({"a": OTHERS_AS_TEXT, "b": OTHERS_AS_TEXT} if several else OTHERS_AS_TEXT)
    trainer.evaluate(OTHERS_AS_TEXT, metric_key_prefix="train")
    trainer.predict(OTHERS_AS_TEXT)
    assert trainer.token_sets == before
    trainer.train()
    manifest = json.loads((tmp_path / "run_manifest.json").read_text())
    [held_out] = [found for name, found in manifest["data"]["sets"].items() if name.startswith("eval")]
    assert held_out["rows"] == held_out["tokenization"]["rows_read"] == 1


@torch.no_grad()
def averages(scored: ScoredPairs) -> list[list[float]]:
    return [[float(w), float(r)] for w, r in scored.compared()]


def lengths(rows) -> list[list[int]]:
    return [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows]


@pytest.mark.parametrize("batch_size", [3, 8])
def test_predictions_are_log_probabilities_and_lengths_of_each_pair(tmp_path, slow, batch_size):
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL, per_device_eval_batch_size=batch_size)
    output = trainer.predict(EVAL)
    assert output.predictions == pytest.approx(np.array(averages(score_pairs(slow, PAIRS))), rel=1e-5)
    assert output.label_ids.tolist() == lengths(PAIRS)


def test_predictions_come_in_the_order_of_the_set_whatever_its_row_numbers(tmp_path):
    """Rows of a set that was shuffled after its tokenization keep their old numbers."""
    rows = [{**row, "row": 10 - place} for place, row in enumerate(PAIRS)]
    output = make_trainer(tmp_path, None, eval_dataset=EVAL).predict(Dataset.from_list(rows))
    assert output.label_ids.tolist() == lengths(PAIRS)


def test_compute_metrics_gets_what_predict_returns(tmp_path):
    """Log-probabilities in the unit of logps/*, here sums, and lengths; its metrics join the others."""
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"longest": int(prediction.label_ids.max())}

    settings = {"average_log_prob": False, "beta": 0.2}
    trainer = make_trainer(
        tmp_path, None, eval_dataset=EVAL, arguments={"compute_metrics": compute_metrics}, **settings
    )
    metrics = trainer.evaluate()
    assert metrics["eval_longest"] == max(map(max, lengths(PAIRS)))
    scored = score_pairs(in_float64(tiny_model()), PAIRS, Settings(**settings))
    assert seen[0].predictions == pytest.approx(np.array(averages(scored)), rel=1e-5)
    assert seen[0].label_ids.tolist() == lengths(PAIRS)


def test_metrics_can_be_written_as_json(tmp_path):
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == metrics


def test_swapping_chosen_and_rejected_negates_the_margin(tmp_path):
    swapped = [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in PAIRS]
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL)
    found, other = trainer.evaluate(EVAL), trainer.evaluate(Dataset.from_list(swapped))
    for name in ("rewards/margins", "logps/margins"):
        assert other[f"eval_{name}"] == pytest.approx(-found[f"eval_{name}"], rel=1e-5)
        assert abs(found[f"eval_{name}"]) > 0.01
    for name in ("rewards", "logps", "lengths", "logits"):
        assert other[f"eval_{name}/chosen"] == pytest.approx(found[f"eval_{name}/rejected"], rel=1e-5)
        assert other[f"eval_{name}/rejected"] == pytest.approx(found[f"eval_{name}/chosen"], rel=1e-5)
    assert other["eval_rewards/accuracies"] == pytest.approx(1 - found["eval_rewards/accuracies"])


def test_evaluation_builds_no_graph_and_changes_no_weight(tmp_path):
    graphs = []

    class Noting(SimPOTrainer):
        def pair_loss(self, chosen, rejected, *, margin):
            graphs.append(chosen.sum.requires_grad)
            return super().pair_loss(chosen, rejected, margin=margin)

    trainer = make_trainer(tmp_path, TRAIN, eval_dataset=EVAL, trainer_class=Noting)
    before = weights_of(trainer)
    trainer.evaluate()
    trainer.predict(EVAL)
    trainer.measure(trainer.rows_to_measure(64))
    assert graphs and not any(graphs)
    assert_same_weights(weights_of(trainer), before, tolerance=0)


def test_an_evaluation_that_broke_off_leaves_nothing_behind(tmp_path, slow):
    calls = []

    class Unsteady(PairCollator):
        def __call__(self, pairs):
            calls.append(pairs)
            if len(calls) == 3:
                raise RuntimeError("no more")
            return super().__call__(pairs)

    settings = {"per_device_eval_batch_size": 2, "arguments": {"data_collator": Unsteady()}}
    trainer = make_trainer(tmp_path, None, eval_dataset=EVAL, **settings)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.evaluate()
    assert without_timings(trainer.evaluate()) == close(expected_metrics(score_pairs(slow, PAIRS), "eval"))


@pytest.mark.slow
def test_evaluating_during_training_leaves_the_run_as_it_was(tmp_path):
    """Training metrics of a logging window that an evaluation falls into stay those of its training pairs."""
    options = {"num_train_epochs": 2, "logging_steps": 2}
    plain = make_trainer(tmp_path / "plain", TRAIN, **options)
    plain.train()
    evaluated = make_trainer(
        tmp_path / "evaluated", TRAIN, eval_dataset=EVAL, eval_strategy="steps", eval_steps=1, **options
    )
    evaluated.train()
    assert_same_run(evaluated, plain, tolerance=0)
    logs = [[entry for entry in run.state.log_history if "loss" in entry] for run in (evaluated, plain)]
    assert logs[0] == logs[1]
    assert sum("eval_loss" in entry for entry in evaluated.state.log_history) == 4


@pytest.mark.slow
def test_the_best_model_by_margin_is_kept(tmp_path):
    """`metric_for_best_model` takes any metric's name; higher margins are better, which is told by the name."""
    trainer = make_trainer(
        tmp_path,
        TRAIN,
        eval_dataset=EVAL,
        num_train_epochs=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_rewards/margins",
    )
    trainer.train()
    margins = [entry["eval_rewards/margins"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = int(np.argmax(margins)) + 1
    assert best < len(margins) == 8
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}")
    assert_same_weights(weights_of(trainer), dict(saved.named_parameters()), tolerance=0)
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(max(margins), rel=1e-5)
