"""DPO and SFT by trl on the rows of SimPO: the same tokens, the loss of the papers, and what is built on in trl."""

import inspect
import math
import re

import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer, SFTTrainer
from trl.trainer import dpo_trainer
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from baselines import IDS, PAIRS, chat_tokenizer, dpo_baseline, ids_of, sft_baseline
from models import (
    EOS,
    as_text,
    random_ranked,
    tiny_model,
    two_by_two,
)
from reference import in_float64, score_answer
from runs import make_trainer
from simpo_trainer import SimPOConfig
from simpo_trainer.baselines.dpo_losses import DIVERGENCES, DPO_LOSSES
from simpo_trainer.baselines.settings import ARGUMENTS
from simpo_trainer.errors import SimPOError
from simpo_trainer.run.one_run import run


def dpo_by_hand(policy, reference, rows, beta, loss="sigmoid"):
    """The mean DPO loss of token rows, one answer at a time in float64."""
    losses = []
    with torch.no_grad():
        for row in rows:
            sides = [(score_answer(policy, row["prompt_ids"], row[name]).sum, row[name]) for name in IDS[1:]]
            before = [score_answer(reference, row["prompt_ids"], row[name]).sum for name in IDS[1:]]
            ratios = [float(now - then) for (now, _), then in zip(sides, before, strict=True)]
            if loss == "ipo":
                ratios = [ratio / len(ids) for ratio, (_, ids) in zip(ratios, sides, strict=True)]
                losses.append((ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2)
            else:
                losses.append(math.log1p(math.exp(-beta * (ratios[0] - ratios[1]))))
    return sum(losses) / len(losses)


def test_what_the_adapter_builds_on_is_still_so_in_trl():
    """Each of these is a name or shape inside trl that a new version may change in silence."""
    parameters = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert parameters == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert "self._prepare_dataset(train_dataset" in inspect.getsource(DPOTrainer.__init__)
    assert callable(_BaseTrainer._send_telemetry)
    assert 'is_processed = "input_ids" in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)
    assert 'if "labels" not in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)


def test_the_names_of_losses_are_trls():
    text = ARGUMENTS["dpo"].__dataclass_fields__["loss_type"].metadata["help"]
    assert set(re.findall(r"`'(\w+)'`", text)) == set(DPO_LOSSES)
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(DPO_LOSSES)
    assert set(re.findall(r'f_divergence_type == "(\w+)"', source)) == set(DIVERGENCES)


@pytest.mark.slow
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_dpo_trains_on_the_tokens_of_simpo(world, tmp_path, monkeypatch, overlong):
    """Rows cut to length and rows left out are the same, and trl tokenizes nothing."""

    def fail(*arguments, **settings):
        raise AssertionError("trl tokenized a row")

    monkeypatch.setattr(dpo_trainer, "_tokenize", fail)
    texts = [*map(as_text, PAIRS[:12]), {"prompt": "w3", "chosen": " ", "rejected": " w4"}]
    lengths = {"max_length": 12 if overlong == "truncate" else 14, "max_prompt_length": 6, "overlong": overlong}
    ours = make_trainer(tmp_path / "simpo", texts, **lengths)
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, **lengths)
    theirs = dpo_baseline(world, tmp_path / "dpo", texts, eval_rows=texts, shared=shared)
    assert ids_of(theirs.train_dataset) == ids_of(ours.train_dataset) == ids_of(theirs.eval_dataset)
    report = theirs.token_sets["train"].report
    assert "empty_answer" in report.dropped
    cut = report.truncated_prompts if overlong == "truncate" else report.dropped["overlong"].count
    assert cut > 0
    assert isinstance(theirs.data_collator, DataCollatorForPreference)
    rows = [theirs.train_dataset[i] for i in range(3)]
    batch = theirs.data_collator(rows)
    for side, (name, half) in enumerate((("chosen_ids", slice(0, 3)), ("rejected_ids", slice(3, 6)))):
        seen = zip(batch["input_ids"][half], batch["attention_mask"][half], batch["completion_mask"][half], strict=True)
        for row, (ids, attention, completion) in zip(rows, seen, strict=True):
            assert ids[attention.bool()].tolist() == row["prompt_ids"] + row[name], side
            assert ids[completion.bool()].tolist() == row[name]


def test_ranked_answers_become_pairs_two_by_two(world, tmp_path):
    rows = random_ranked(4)
    trainer = dpo_baseline(world, tmp_path, rows)
    assert ids_of(trainer.train_dataset) == ids_of(two_by_two(rows))


def test_evaluating_texts_is_refused_instead_of_tokenized_otherwise(world, tmp_path):
    trainer = dpo_baseline(world, tmp_path, PAIRS[:4])
    with pytest.raises(
        SimPOError, match="token rows for an evaluation; the columns chosen_ids, prompt_ids, rejected_ids are missing"
    ):
        trainer.evaluate(Dataset.from_list([as_text(pair) for pair in PAIRS[:4]]))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_logged_loss_is_the_papers(world, tmp_path, loss):
    """A policy that differs from its reference, against the formula."""
    rows = PAIRS[:6]
    settings = {"beta": 0.05, "loss_type": [loss], "per_device_eval_batch_size": 6}
    trainer = dpo_baseline(world, tmp_path, rows, eval_rows=rows, **settings)
    trainer.model.load_state_dict(tiny_model(seed=1).state_dict())
    found = trainer.evaluate()
    expected = dpo_by_hand(in_float64(tiny_model(seed=1)), in_float64(tiny_model()), rows, 0.05, loss)
    assert abs(expected - (math.log(2) if loss == "sigmoid" else 100)) > 0.01
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["eval_logps/margins"] == pytest.approx(found["eval_logps/chosen"] - found["eval_logps/rejected"])


def test_the_labels_of_sft(world, tmp_path):
    trainer = sft_baseline(world, tmp_path, PAIRS[:6])
    for row, pair in zip(trainer.train_dataset, PAIRS[:6], strict=True):
        assert row["input_ids"] == pair["prompt_ids"] + pair["chosen_ids"]
        assert row["labels"] == [-100] * len(pair["prompt_ids"]) + pair["chosen_ids"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert ((batch["labels"] != -100).sum(1) <= 8).all()
    # The logged loss is the mean over those tokens.
    expected = [score_answer(in_float64(tiny_model()), p["prompt_ids"], p["chosen_ids"]).logps for p in PAIRS[:6]]
    found = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert found == pytest.approx(-float(torch.cat(expected).mean().detach()), rel=1e-4)
    whole = sft_baseline(world, tmp_path, PAIRS[:6], completion_only_loss=False)
    assert all(row["labels"] == row["input_ids"] for row in whole.train_dataset)


def test_sft_on_ranked_answers_takes_the_best(world, tmp_path):
    rows = random_ranked(3)
    trainer = sft_baseline(world, tmp_path, rows)
    assert [row["input_ids"] for row in trainer.train_dataset] == [r["prompt_ids"] + r["response_ids"][0] for r in rows]


def test_the_tokens_of_conversations(world, tmp_path):
    system = {"role": "system", "content": "w9"}
    talk = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6 w7"}]
    rows = [{"messages": [system, *talk]}, {"messages": talk}]
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, max_length=4, max_prompt_length=2)
    found = sft_baseline(world, tmp_path, rows, chat_tokenizer(), shared).train_dataset["input_ids"][:]
    assert found == [[1, 9, 4, 5], [1, 4, 5, 6]]
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, system_messages="drop")
    found = sft_baseline(world, tmp_path, rows, chat_tokenizer(), shared).train_dataset["input_ids"][:]
    assert found == [[1, 4, 5, 6, 7, EOS]] * 2
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        sft_baseline(world, tmp_path, rows)


def test_conversations_and_pairs_do_not_mix(recipe, world):
    mixed = {str(world / "talks.jsonl"): 1.0, str(world / "pairs.jsonl"): 1.0}
    loaded = recipe(method="sft", dataset_name=None, eval_dataset_name=None, dataset_mixer=mixed)
    with pytest.raises(SimPOError, match="has pairs and .* has rows of messages; sources that are mixed"):
        run(loaded)
