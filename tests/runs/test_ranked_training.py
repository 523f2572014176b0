"""More than two answers to a prompt train as the same pairs two by two."""

import json
import logging
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset

from models import BOS, EOS, as_text, random_pairs, tiny_model, two_by_two, word_tokenizer
from pair_files import load, write
from ranked_rows import LENGTHS, ROWS, ranked, tokenize
from reference import in_float64, pair_loss, score_answer, tokens_of
from runs import PLAIN_STEPS, assert_same_run, assert_same_weights, make_trainer, train_log, weights_of
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.batches.batch import PairCollator, count_tokens
from simpo_trainer.batches.order import PairBatchSampler
from simpo_trainer.errors import SimPOError
from simpo_trainer.loss.losses import simpo_loss
from simpo_trainer.model.scoring import add_scoring_forward, score_answers
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run
from simpo_trainer.tokens.sets import pair_counts, token_lengths
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.shown import render_row
from simpo_trainer.tokens.tokenization import tokenize_stream
from toy import assistant, toy_tokenizer, user

# ---- The same as two by two ----


@pytest.mark.parametrize("conversational", [False, True])
def test_tokens_are_those_of_pairs_made_by_hand(conversational):
    rows = [ranked(3, 1, 2, prompt=f"What is {i}?", texts=["yes", "no", "may be"]) for i in range(4)]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["responses"][better], "rejected": row["responses"][worse]}
        for row in rows
        for better, worse in ((0, 2), (0, 1), (2, 1))
    ]
    if conversational:
        for row in rows:
            row["prompt"] = [user(row["prompt"])]
            row["responses"] = [[assistant(text)] for text in row["responses"]]
        for pair in pairs:
            pair |= {"prompt": [user(pair["prompt"])]}
            pair |= {side: [assistant(pair[side])] for side in ("chosen", "rejected")}
    expected = tokenize(pairs)[0].remove_columns("row").to_list()
    assert two_by_two(tokenize(rows)[0].to_list()) == expected
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert two_by_two(list(tokenize_stream(stream, toy_tokenizer(), RowSettings(**LENGTHS)))) == expected


@pytest.mark.parametrize("layout", ["padded", "shared_prefix", "packed"])
def test_loss_and_gradient_are_those_of_pairs_two_by_two(layout):
    rows = [{**row, "margin": [0.1 * (place + 1) for place in row["chosen"]]} for row in ROWS[:5]]

    def loss_and_gradients(model, batch):
        averages = score_answers(model, batch).average
        chosen, rejected = averages[batch["chosen"]], averages[batch["rejected"]]
        loss = simpo_loss(
            chosen, rejected, beta=2.0, gamma_beta_ratio=0.5 + batch["margin"], label_smoothing=0.0
        ).mean()
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    model = tiny_model().double().eval()
    add_scoring_forward(model)
    expected = loss_and_gradients(model, PairCollator()(two_by_two(rows)))
    found = loss_and_gradients(model, PairCollator(layout=layout)(rows))
    # Norm layers compute in float32 even inside a float64 model.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layout", [*(pytest.param(layout, marks=pytest.mark.slow) for layout in ("padded", "shared_prefix")), "packed"]
)
def test_a_run_is_that_of_pairs_two_by_two(tmp_path, layout):
    rows = ROWS[:8]
    pairs = make_trainer(tmp_path / "pairs", two_by_two(rows), per_device_train_batch_size=99, max_steps=3)
    pairs.train()
    found = make_trainer(tmp_path / "ranked", rows, batch_layout=layout, max_steps=3)
    found.train()
    assert_same_run(found, pairs, tolerance=1e-4)
    assert train_log(found, "num_pairs_seen") == train_log(pairs, "num_pairs_seen") == [(40,), (80,), (120,)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps of 8 + 8 + 6 prompts with one to ten pairs each, in two epochs."""
    trainer = make_trainer(
        tmp_path_factory.mktemp("whole"), ROWS, num_train_epochs=2, save_strategy="steps", save_steps=1, sft_weight=0.1
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_the_split_into_micro_batches_changes_nothing(tmp_path, whole, split):
    size, accumulation = split
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    found = make_trainer(tmp_path, ROWS, num_train_epochs=2, sft_weight=0.1, **settings)
    found.train()
    assert_same_run(found, whole, tolerance=1e-4)
    names = ("num_pairs_seen", "num_tokens_seen")
    assert train_log(found, *names) == train_log(whole, *names)


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, whole):
    resumed = make_trainer(tmp_path, ROWS, model=tiny_model(seed=5), num_train_epochs=2, sft_weight=0.1)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    names = ("loss", "num_pairs_seen", "num_tokens_seen")
    assert np.allclose(train_log(resumed, *names)[4:], train_log(whole, *names)[4:], rtol=1e-6)
    assert_same_weights(weights_of(resumed), weights_of(whole), tolerance=1e-6)


def test_every_pair_and_token_is_counted_once(whole):
    pairs, tokens = train_log(whole, "num_pairs_seen", "num_tokens_seen")[2]
    assert pairs == sum(len(row["chosen"]) for row in ROWS)
    assert tokens == sum(len(row["prompt_ids"]) + len(ids) for row in ROWS for ids in row["response_ids"])


def test_evaluation_is_that_of_pairs_two_by_two(tmp_path):
    trainer = make_trainer(tmp_path, None, eval_dataset=ROWS, per_device_eval_batch_size=3)
    rows = [{**row, "margin": [0.1] * len(row["chosen"])} for row in ROWS[:7]]
    found, expected = (trainer.predict(Dataset.from_list(given)) for given in (rows, two_by_two(rows)))
    assert found.predictions == pytest.approx(expected.predictions, rel=1e-5)
    assert found.label_ids.tolist() == expected.label_ids.tolist()
    assert found.metrics["test_num_pairs"] == 30 and found.metrics["test_num_tokens"] < tokens_of(two_by_two(rows))
    for name in ("loss", "rewards/accuracies", "logps/past_target", "lengths/chosen"):
        assert found.metrics[f"test_{name}"] == pytest.approx(expected.metrics[f"test_{name}"], rel=1e-5)


def test_margin_scale_enters_the_loss(tmp_path):
    """From text to loss, against the formula written out."""
    row = {"prompt": "w5 w6", "responses": [" w7 w8", " w9", " w10 w11 w12"], "scores": [1, 4, 2]}
    trainer = SimPOTrainer(
        tiny_model(),
        SimPOConfig(str(tmp_path), use_cpu=True, margin_scale=0.25, beta=3.0),
        eval_dataset=Dataset.from_list([row]),
        processing_class=word_tokenizer(),
    )
    slow = in_float64(tiny_model())
    a, b, c = (score_answer(slow, [BOS, 5, 6], ids).average for ids in ([7, 8, EOS], [9, EOS], [10, 11, 12, EOS]))
    settings = type(
        "Settings", (), {"beta": 3.0, "gamma_beta_ratio": 0.5, "loss_type": "sigmoid", "label_smoothing": 0}
    )
    losses = [pair_loss(*pair, settings, margin) for *pair, margin in ((b, c, 0.5), (b, a, 0.75), (c, a, 0.25))]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses).item() / 3, rel=1e-5)


# ---- Batches and counts ----


def test_a_batch_by_hand():
    rows = [
        {"prompt_ids": [1, 5], "response_ids": [[6, 2], [7, 2], [2]], "chosen": [0, 1], "rejected": [2, 2]},
        {"prompt_ids": [1], "response_ids": [[3, 2], [2]], "chosen": [1], "rejected": [0], "weight": 0.0},
    ]
    batch = PairCollator(layout="shared_prefix")([{**row, "index": index} for index, row in enumerate(rows)])
    expected = {
        "input_ids": [[1, 5, 6, 5, 7, 5], [1, 3, 1, 0, 0, 0]],
        "branch": [[0, 1, 1, 3, 3, 5], [2, 2, 4, 0, 0, 0]],
        "num_responses": 5,
        "chosen": [0, 2, 3],
        "rejected": [4, 4, 1],
        "pair_weight": [1.0, 1.0, 0.0],
        "pair_tokens": [3 * 2 + 5, 0, 2 * 1 + 3],
        "row": [-1, -1, -1],
        "index": [0, 0, 1],
    }
    assert {key: batch[key].tolist() for key in expected} == expected
    assert count_tokens(batch).tolist() == [2, 11, 2 + 2]


def test_lengths_and_pairs_are_counted_where_the_ids_lie():
    expected = [[len(row["prompt_ids"]), sum(map(len, row["response_ids"])), len(row["response_ids"])] for row in ROWS]
    counts = [len(row["chosen"]) for row in ROWS]
    dataset = Dataset.from_list(ROWS)
    for given in (dataset, ROWS):
        assert token_lengths(given).tolist() == expected and pair_counts(given) == counts
    order = [7, 3, 21, 0]
    assert token_lengths(dataset.select(order)).tolist() == [expected[place] for place in order]
    assert pair_counts(dataset.select(order)) == [counts[place] for place in order]
    assert pair_counts(random_pairs(3)) is None


@pytest.mark.parametrize("drop_last", [False, True])
def test_pairs_seen_are_a_function_of_the_step(drop_last):
    counts = [len(row["chosen"]) for row in ROWS]
    settings = {"batch_size": 3, "num_processes": 2, "accumulation": 1, "seed": 3, "drop_last": drop_last}
    samplers = [PairBatchSampler(22, process_index=i, pair_counts=counts, lengths=counts, **settings) for i in range(2)]
    seen, step = 0, 0
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for batches in zip(*samplers, strict=True):
            step += 1
            seen += sum(counts[draw.row] for batch in batches for draw in batch if draw.weight)
            fresh = PairBatchSampler(22, pair_counts=counts, lengths=counts, **settings)
            assert samplers[0].pairs_after(step) == fresh.pairs_after(step) == seen
    assert step == (9 if drop_last else 12)


# ---- Runs ----


def text_rows(count):
    """Ranked rows that `word_tokenizer` reads."""
    pairs = [as_text(row) for row in random_pairs(12 * count) if min(map(len, row.values())) > 1]
    groups = [pairs[3 * i : 3 * i + 3] for i in range(count)]
    return [
        {"prompt": own[0]["prompt"], "responses": [pair["chosen"] for pair in own], "scores": [3, 1, 2]}
        for own in groups
    ]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_recipe_with_ranked_answers(tmp_path, caplog, streaming):
    """The whole way from a file to a trained model; of a stream, pairs are not counted."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", text_rows(9))
    (tmp_path / "recipe.yaml").write_text(
        f"model_name_or_path: {tmp_path}/model\ndataset_name: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n"
        "pairs: adjacent\nmargin_scale: 0.1\nmax_length: 64\nmax_prompt_length: 32\n"
        "per_device_train_batch_size: 2\nmax_steps: 2\nlogging_steps: 1\n"
        f"use_cpu: true\nstreaming: {str(streaming).lower()}\n" + ("" if streaming else "test_split_size: 3\n")
    )
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        metrics = run(load_recipe(tmp_path / "recipe.yaml"))
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    seen = [entry.get("num_pairs_seen") for entry in history if "loss" in entry]
    manifest = json.loads((tmp_path / "out" / "run_manifest.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "global batch | 2 prompts (2 per device" in card
    assert "the target margin grows by `margin_scale` times the difference" in card
    if streaming:
        assert seen == [None, None]
        assert "Global batch: 2 prompts (2 per device x 1 process x 1 accumulation). Optimiser steps: 2." in caplog.text
        return
    assert seen == [4, 8] and metrics["eval_num_pairs"] == 6
    assert "train: 6 of 6 prompts, 12 pairs of their answers; the longest has" in caplog.text
    assert "answer 0, chosen over 1, " in caplog.text
    assert (
        "Global batch: 2 prompts (2 per device x 1 process x 1 accumulation), with 4 pairs on average." in caplog.text
    )
    assert manifest["data"]["sets"]["train"]["pairs"] == 12 and "12 of 6 prompts" in card


def test_fewer_tokens_are_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        make_trainer(tmp_path, ROWS)
    every = sum(len(row["prompt_ids"]) + len(ids) for row in ROWS for ids in row["response_ids"])
    saved = sum(len(row["prompt_ids"]) * (len(row["response_ids"]) - 1) for row in ROWS)
    assert f"; {saved / every:.0%} fewer tokens than with a row for each answer" in caplog.text


def test_settings_of_ranked_answers_that_nobody_reads_are_said(tmp_path, caplog):
    make_trainer(tmp_path, random_pairs(4))
    assert "no ranked answers" not in caplog.text
    make_trainer(tmp_path, random_pairs(4), margin_scale=0.5, pairs="adjacent")
    assert "pairs is adjacent and margin_scale is 0.5, but the rows of the train set are no ranked" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": "best"}, "pairs is 'best'; it must be 'all', 'best_worst' or 'adjacent'"),
        ({"margin_scale": -0.1}, "margin_scale is -0.1; it must be a number, 0 or above. Set margin_scale: 0.0"),
        ({"margin_scale": math.inf}, "margin_scale is inf; it must be a number"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, message):
    with pytest.raises(SimPOError, match=message):
        SimPOConfig(str(tmp_path), use_cpu=True, **settings)


def test_whatever_changes_the_pairs_changes_the_key(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ranked(1, 3, 2)])
    train, _ = load(path)
    settings = [{}, {"pairs": "adjacent"}, {"pairs": "best_worst"}, {"margin_scale": 0.1}, {"margin_scale": 0.2}]
    keys = {tokenize(train, **given)[0]._fingerprint for given in settings}
    assert len(keys) == len(settings)
    assert tokenize(train)[0]._fingerprint in keys


def test_a_ranked_row_for_the_eye():
    tokenizer = toy_tokenizer()
    [row] = tokenize([ranked(1, 3, 2, prompt="Hi")])[0]
    assert render_row(row, tokenizer).split("\n") == [
        "row 0: prompt, 3 tokens",
        "    <s>Hi",
        *("answer 0, chosen over 1, 2, 2 tokens scored", "    ⟦ b<|im_end|>⟧"),
        *("answer 1, chosen over 2, 2 tokens scored", "    ⟦ c<|im_end|>⟧"),
        *("answer 2, 2 tokens scored", "    ⟦ a<|im_end|>⟧"),
    ]


@pytest.mark.slow
def test_a_stream_of_token_rows_trains_as_a_set(tmp_path):
    rows = [ROWS[place] for place in (0, 1, 2, 3)] * 2
    settings = {**PLAIN_STEPS, "max_steps": 2, "max_length": 64, "max_prompt_length": 32}
    streamed = SimPOTrainer(
        tiny_model(),
        SimPOConfig(str(tmp_path / "stream"), use_cpu=True, **settings),
        train_dataset=Dataset.from_list(rows).to_iterable_dataset(),
        processing_class=word_tokenizer(),
    )
    streamed.train()
    whole = make_trainer(tmp_path / "set", rows, max_steps=2)
    whole.train()
    assert_same_run(streamed, whole, tolerance=1e-5)
    assert "num_pairs_seen" not in streamed.state.log_history[0]


def test_every_two_of_random_rows():
    """The premise of the comparisons above: rows have from one to ten pairs."""
    assert {len(row["chosen"]) for row in ROWS} == {math.comb(k, 2) for k in (2, 3, 4, 5)}
    assert all(
        list(zip(r["chosen"], r["rejected"], strict=True)) == list(combinations(range(len(r["response_ids"])), 2))
        for r in ROWS
    )
