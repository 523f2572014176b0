"""Held-out pairs are one measure for every method: log-probabilities per token, as SimPO's own evaluation has them."""

import json

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from models import random_pairs, random_ranked, tiny_model, two_by_two, word_tokenizer
from runs import PLAIN_STEPS, make_trainer
from simpo_trainer import SimPOConfig
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.baselines.settings import ARGUMENTS
from simpo_trainer.baselines.sft import SFTBaseline
from simpo_trainer.record.pair_scores import read_scores
from simpo_trainer.train import held_out

BASELINES = {"dpo": DPOBaseline, "sft": SFTBaseline}
METHODS = ["simpo", "dpo", "sft"]
TRAIN, PAIRS = random_pairs(8), random_pairs(7, seed=1)


def trainer_of(method, folder, pairs=PAIRS, train=TRAIN, **settings):
    """A trainer that evaluates once, after its two steps."""
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3} | settings
    if method == "simpo":
        return make_trainer(folder, train, eval_dataset=Dataset.from_list(pairs), **settings)
    tiny_model().save_pretrained(folder.parent / "untrained")
    of_machine = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    arguments = ARGUMENTS[method](
        output_dir=str(folder),
        max_length=None,
        remove_unused_columns=False,
        **{**PLAIN_STEPS, **of_machine, **settings},
    )
    return BASELINES[method](
        model=str(folder.parent / "untrained"),
        args=arguments,
        shared=SimPOConfig(output_dir=str(folder), use_cpu=True),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(pairs),
        processing_class=word_tokenizer(),
    )


def trained(method, folder, *arguments, **settings):
    """What a run recorded of its held-out pairs, and the model that it saved."""
    trainer = trainer_of(method, folder, *arguments, **settings)
    trainer.train()
    trainer.held_out.measure_end()
    trainer.save_model(str(folder))
    return record(folder)["held_out"], AutoModelForCausalLM.from_pretrained(folder)


def record(folder):
    return json.loads((folder / "run_manifest.json").read_text())


def evaluated(model, folder, pairs=PAIRS):
    """The figures of SimPO's evaluation of a model."""
    rows = Dataset.from_list(pairs)
    found = make_trainer(folder, None, model=model, eval_dataset=rows, per_device_eval_batch_size=7).evaluate()
    names = {"accuracy": "rewards/accuracies", "margin": "logps/margins"}
    names |= {"chosen": "logps/chosen", "rejected": "logps/rejected"}
    return pytest.approx({name: found[f"eval_{logged}"] for name, logged in names.items()}, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_figures_are_those_of_an_evaluation_by_simpo(tmp_path, method):
    found, model = trained(method, tmp_path / "run")
    [(name, pairs)] = found.items()
    assert name == "eval" and pairs["pairs"] == len(PAIRS)
    end = dict(pairs["end"])
    assert end.pop("step") == 2 and abs(end["chosen"] - pairs["start"]["chosen"]) > 1e-3
    assert end == evaluated(model, tmp_path / "evaluated")
    assert pairs["start"] == evaluated(tiny_model(), tmp_path / "evaluated")


@pytest.mark.slow
def test_the_pairs_of_all_methods_are_known_as_the_same(tmp_path):
    """The rows that each trains on differ: SFT has no rejected answers."""
    found = {}
    for method in METHODS:
        trainer_of(method, tmp_path / method, max_steps=1, eval_strategy="no").train()
        found[method] = record(tmp_path / method)
    for name in ("train", "eval"):
        assert len({run["data"]["sets"][name]["pairs_sha256"] for run in found.values()}) == 1
    assert (
        found["sft"]["data"]["sets"]["eval"]["tokens_sha256"] != found["simpo"]["data"]["sets"]["eval"]["tokens_sha256"]
    )
    [print_] = {run["held_out"]["eval"]["tokens_sha256"] for run in found.values()}
    assert print_ == found["simpo"]["data"]["sets"]["eval"]["tokens_sha256"]
    # No evaluation was asked for, so there was none.
    assert all(run["held_out"]["eval"]["start"] is run["held_out"]["eval"]["end"] is None for run in found.values())


def test_an_evaluation_of_simpo_is_not_repeated(tmp_path, monkeypatch):
    def fail(*arguments):
        raise AssertionError("scored again")

    monkeypatch.setattr(held_out, "score_pairs", fail)
    found, _ = trained("simpo", tmp_path / "run", eval_on_start=True)
    assert found["eval"]["start"] and found["eval"]["end"]["step"] == 2


def test_other_pairs_than_those_of_the_run_are_not_recorded(tmp_path):
    trainer = trainer_of("simpo", tmp_path)
    trainer.train()
    before = record(tmp_path)["held_out"]
    trainer.evaluate(Dataset.from_list(TRAIN))
    assert record(tmp_path)["held_out"] == before


def test_each_of_several_sets_is_recorded(tmp_path):
    sets = {"easy": Dataset.from_list(PAIRS[:3]), "hard": Dataset.from_list(PAIRS[3:])}
    settings = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    make_trainer(tmp_path, TRAIN, eval_dataset=sets, **settings).train()
    found = record(tmp_path)["held_out"]
    assert {name: pairs["pairs"] for name, pairs in found.items()} == {"eval_easy": 3, "eval_hard": 4}
    assert all(pairs["start"] and pairs["end"]["step"] == 1 for pairs in found.values())


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_pairs_know_their_sources(tmp_path, method):
    """Each pair of ranked answers has the source of its row, and of shuffled rows each its own."""
    ranked = [{**row, "source": source} for row, source in zip(random_ranked(4), ["a", "b", None, "a"], strict=True)]
    trained(method, tmp_path / "run", ranked, TRAIN)
    [scored] = read_scores(tmp_path / "run").values()
    expected = [row["source"] or "unknown" for row in ranked for _ in row["chosen"]]
    assert scored.sources.tolist() == expected and len(scored.start) == len(expected)


@pytest.mark.slow
def test_a_loss_of_sums_is_measured_per_token_too(tmp_path):
    found, model = trained("simpo", tmp_path / "run", average_log_prob=False, beta=0.2)
    assert record(tmp_path / "run")["log_prob_unit"] == "nats"
    end = dict(found["eval"]["end"])
    end.pop("step")
    assert end == evaluated(model, tmp_path / "evaluated")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ranked_answers_are_measured_in_all_their_pairs(tmp_path, method):
    ranked = random_ranked(5)
    found, model = trained(method, tmp_path / "run", ranked, ranked)
    assert found["eval"]["pairs"] == len(two_by_two(ranked)) > 5
    end = dict(found["eval"]["end"])
    end.pop("step")
    assert end == evaluated(model, tmp_path / "evaluated", ranked)


@pytest.mark.parametrize("method", ["dpo", "sft"])
@pytest.mark.parametrize("training", [True, False])
def test_measuring_is_without_dropout_and_changes_no_mode(tmp_path, method, training):
    trainer = trainer_of(method, tmp_path / "run")
    for layer in trainer.model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.5
    trainer.model.train(training)
    rows = trainer.held_out_sets()["eval"]
    one, two = (held_out.figures_of(held_out.score_pairs(trainer, trainer.held_out_batches(rows))) for _ in range(2))
    assert one == two and trainer.model.training == training
    assert all(weight.grad is None for weight in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_end_is_of_the_best_model_where_that_is_saved(tmp_path, method):
    """It is that of the first step, by losses that are given out as measured."""
    settings = {"eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "eval_loss"}
    trainer = trainer_of(method, tmp_path / "run", **settings)
    evaluate, loss = trainer.evaluate, iter((1.0, 2.0))

    def as_wanted(*arguments, **words):
        metrics = evaluate(*arguments, **words)
        metrics["eval_loss"] = next(loss, 3.0)
        return metrics

    trainer.evaluate = as_wanted
    trainer.train()
    trainer.held_out.measure_end()
    end = dict(record(tmp_path / "run")["held_out"]["eval"]["end"])
    assert end.pop("step") == 1
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert end == evaluated(best, tmp_path / "evaluated")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simpo", "dpo"])
def test_a_resumed_run_keeps_the_untrained_figures_of_the_same_pairs(tmp_path, method):
    settings = {"save_strategy": "steps", "save_steps": 1}
    found, _ = trained(method, tmp_path / "run", **settings)
    trainer_of(method, tmp_path / "run", **settings).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert record(tmp_path / "run")["held_out"]["eval"]["start"] == found["eval"]["start"]
    others = trainer_of(method, tmp_path / "run", PAIRS[:3], **settings)
    others.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert record(tmp_path / "run")["held_out"]["eval"]["start"] is None


@pytest.mark.parametrize("method", METHODS)
def test_prompts_are_answered_under_every_method_beside_its_own_metrics(tmp_path, method):
    """Its window of metrics is not cut by the samples: the second step's log is of the second step."""
    logs = []
    for count in (0, 2):
        trainer = trainer_of(method, tmp_path / f"out-{count}")
        getattr(trainer, "shared", trainer.args).sample_prompts = count
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
        samples = [entry["step"] for entry in trainer.state.log_history if "samples/tokens" in entry]
        assert samples == ([0, 2] if count else [])
    timed = ("runtime", "per_second")
    kept = [[{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in log] for log in logs]
    assert kept[0] == kept[1]
