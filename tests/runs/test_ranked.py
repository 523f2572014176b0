"""More than two answers to a prompt: the pairs made of them, and that they train as the same pairs two by two."""

import json
import logging
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import Dataset

from models import BOS, EOS, as_text, random_pairs, random_ranked, tiny_model, two_by_two, word_tokenizer
from pair_files import load, write
from reference import in_float64, pair_loss, score_answer, tokens_of
from runs import PLAIN_STEPS, assert_same_run, assert_same_weights, make_trainer, train_log, weights_of
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.batches.batch import PairCollator, count_tokens
from simpo_trainer.batches.order import PairBatchSampler
from simpo_trainer.data import load as preferences
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.ranking import ranked_pairs
from simpo_trainer.errors import SimPOError
from simpo_trainer.loss.losses import simpo_loss
from simpo_trainer.model.scoring import add_scoring_forward, score_answers
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run
from simpo_trainer.tokens.sets import pair_counts, token_lengths
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.shown import render_row
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import CHATML, assistant, toy_tokenizer, user

LENGTHS = {"max_length": 256, "max_prompt_length": 128, "overlong": "truncate"}
ROWS = random_ranked(22)


def tokenize(rows, tokenizer=None, **settings):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, on_mixed_types="use_json")
    return tokenize_preferences(dataset, tokenizer or toy_tokenizer(), RowSettings(**{**LENGTHS, **settings}))


def ranked(*scores, prompt="Say it", texts="abcdefgh", **more):
    """A row of texts with these scores."""
    answers = [None if text == "_" else f" {text}" for text in texts[: len(scores)]]
    return {"prompt": prompt, "responses": answers, "scores": list(scores), **more}


def said(row, tokenizer):
    """The pairs of a token row, as the texts of chosen and rejected."""
    texts = [tokenizer.decode(ids[:-1]).strip() for ids in row["response_ids"]]
    return [texts[chosen] + texts[rejected] for chosen, rejected in zip(row["chosen"], row["rejected"], strict=True)]


# ---- Which pairs ----


@pytest.mark.parametrize(
    ("values", "every", "best_worst", "adjacent"),
    [
        ([3, 1, 2], "02 01 21", "01", "02 21"),
        ([2, 1, 2, 0], "01 21 03 23 13", "03 23", "01 21 13"),
        ([1, 1, 0, 0], "02 03 12 13", "02 03 12 13", "02 03 12 13"),
        ([0.5, -1], "01", "01", "01"),
        ([1, 1, 1], "", "", ""),
    ],
)
def test_pairs_of_ranked_answers(values, every, best_worst, adjacent):
    for choice, expected in (("all", every), ("best_worst", best_worst), ("adjacent", adjacent)):
        found = [f"{chosen}{rejected}" for chosen, rejected in ranked_pairs(dict(enumerate(values)), choice)]
        assert found == expected.split()


@pytest.mark.parametrize(
    ("choice", "pairs", "answers"), [("all", "bc ba ca", 3), ("best_worst", "ba", 2), ("adjacent", "bc ca", 3)]
)
def test_only_answers_in_a_pair_are_kept(choice, pairs, answers):
    [row] = tokenize([ranked(1, 3, 2)], pairs=choice)[0]
    assert said(row, toy_tokenizer()) == pairs.split()
    assert len(row["response_ids"]) == answers
    assert set(row) == {"row", "prompt_ids", "response_ids", "chosen", "rejected"}


def test_ranks_are_scores_the_other_way_round():
    row = ranked(4.0, 9.5, 4.0, 7.0)
    by_rank = {**row, "ranks": [3, 1, 3, 2]}
    del by_rank["scores"]
    expected = tokenize([row])[0].to_list()
    assert tokenize([by_rank])[0].to_list() == expected
    assert tokenize([{**row, "scores": ["4", "9.5", "4.0", "7"]}])[0].to_list() == expected
    assert tokenize([by_rank], margin_scale=0.5)[0]["margin"][:] == [[0.5, 1.0, 1.0, 0.5, 0.5]]


def test_margins_grow_with_the_difference_of_scores():
    [row] = tokenize([ranked(1, 3, 2.5)], margin_scale=0.2)[0]
    assert said(row, toy_tokenizer()) == ["bc", "ba", "ca"]
    assert row["margin"] == pytest.approx([0.1, 0.4, 0.3])
    assert "margin" not in tokenize([ranked(1, 3, 2.5)])[0].column_names


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


# ---- What is left out ----


def test_answers_that_cannot_be_used_are_left_out_and_counted():
    rows = [
        ranked(1, 3, 2),
        ranked(1, None, 2),
        ranked(1, math.nan, "n/a", 4),
        ranked(4, 3, 2, texts=["so", "_", "no"]),
        ranked(4, 3, 2, texts=["so", "x<|im_end|>y", "no"]),
    ]
    rows.append({**ranked(4, 3, 2), "responses": [" so", "  ", " no"]})
    tokenized, report = tokenize(rows)
    assert [said(row, toy_tokenizer()) for row in tokenized][:3] == [["bc", "ba", "ca"], ["ca"], ["da"]]
    assert [len(row["response_ids"]) for row in tokenized] == [3, 2, 2, 2, 2, 2]
    found = {reason: (left.count, left.first_row) for reason, left in report.left_out.items()}
    assert found == {"bad_score": (3, 1), "missing_field": (1, 3), "end_token_inside": (1, 4), "empty_answer": (1, 5)}
    assert report.summary().startswith("train: 6 of 6 prompts, 8 pairs of their answers; the longest has ")
    assert "  left out 3 answers (bad_score, first row 1): an answer's score (or rank) is missing" in report.summary()


def test_messages_that_are_no_answer_are_left_out():
    """Beside answers that are messages, a prompt of text is what the user says."""
    answers = [[assistant("so")], assistant("no"), [user("no")], [assistant(None)], [assistant("may be")], "text"]
    row = {"prompt": [user("Hi")], "responses": answers, "scores": [6, 5, 4, 3, 2, 1]}
    tokenized, report = tokenize([row])
    assert said(tokenized[0], toy_tokenizer()) == ["sono", "somay be", "nomay be"]
    reasons = {reason: left.count for reason, left in report.left_out.items()}
    assert reasons == {"answer_messages": 1, "bad_message": 1, "wrong_type": 1}
    spoken = {"prompt": "Hi", "responses": answers[:5], "scores": row["scores"][:5]}
    assert tokenize([spoken])[0].to_list() == tokenized.to_list()


def test_answers_that_call_a_tool():
    """Where a struct gives each message the keys of all, those that it has not are left out."""
    template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ message.tool_calls }}")
    tokenizer = toy_tokenizer(template)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    prompt, answers = [user("Hi")], [[call], [assistant("no")]]
    row = {"prompt": prompt, "responses": answers, "scores": [2.0, 1.0]}
    pair = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    expected = tokenize(Dataset.from_list([pair]), tokenizer)[0].remove_columns("row").to_list()
    assert two_by_two(tokenize(Dataset.from_list([row]), tokenizer)[0].to_list()) == expected


def test_a_template_that_refuses_one_answer():
    refusing = "{% for m in messages %}{{ raise_exception('bad') if m.content == 'bad' }}{% endfor %}" + CHATML
    row = {
        "prompt": [user("Hi")],
        "responses": [[assistant(text)] for text in ("so", "bad", "no")],
        "scores": [1, 2, 3],
    }
    tokenized, report = tokenize([row], toy_tokenizer(refusing))
    assert said(tokenized[0], toy_tokenizer()) == ["noso"]
    assert report.left_out["template_error"].count == 1


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (ranked(1, 1, 1), "no_pair", ""),
        (ranked(1, None, None), "no_pair", "answer 1: bad_score, answer 2: bad_score"),
        (ranked(1, 2, texts=["so", "so"]), "no_pair", ""),
        (ranked(1, 2, texts="__"), "missing_field", ""),
        (ranked(None, None), "bad_score", ""),
        ({**ranked(1, 2), "scores": [1, 2, 3]}, "score_count", "2 responses, 3 scores"),
        ({**ranked(1, 2), "scores": None}, "missing_field", ""),
        ({**ranked(1, 2), "responses": None}, "missing_field", ""),
        ({**ranked(1, 2), "prompt": None}, "missing_field", ""),
        ({**ranked(1, 2), "responses": "text"}, "wrong_type", "responses: str, scores: list"),
        ({**ranked(1, 2), "prompt": [user("Hi")]}, "wrong_type", "prompt: list, responses: str"),
        (ranked(1, 2, texts=["z" * 300, "a"]), "overlong", ""),
    ],
)
def test_rows_that_make_no_pair(row, reason, detail):
    tokenized, report = tokenize([row, ranked(1, 2)], overlong="drop")
    assert tokenized["row"][:] == [1]
    assert list(report.dropped) == [reason] and detail in report.dropped[reason].detail
    assert report.left_out == {}


def test_answers_that_are_the_same_make_no_pair_with_each_other():
    [row] = tokenize([ranked(3, 2, 1, texts=["so", "so", "no"])])[0]
    assert said(row, toy_tokenizer()) == ["sono", "sono"]
    cut = ranked(3, 2, 1, prompt="abc", texts=["x" * 20, "x" * 30, "y" * 20])
    [row], report = tokenize([cut], max_length=12, max_prompt_length=6)
    assert (row["chosen"], row["rejected"]) == ([0, 1], [2, 2]) and report.truncated_answers == 3
    assert {len(ids) for ids in row["response_ids"]} == {8}  # the room behind the prompt
    same = ranked(3, 2, prompt="abc", texts=["x" * 20, "x" * 30])
    _, report = tokenize([same, cut], max_length=12, max_prompt_length=6)
    assert list(report.dropped) == ["identical_after_truncation"]


def test_only_answers_in_a_pair_decide_on_the_length():
    row = ranked(3, 2, 1, texts=["so", "z" * 300, "no"])
    rows = [row, ranked(2, 1)]
    assert tokenize(rows, pairs="best_worst", overlong="drop")[0]["row"][:] == [0, 1]
    assert tokenize(rows, overlong="drop")[0]["row"][:] == [1]


# ---- Columns ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chosen": "a"},
            "train: there is 'responses' beside 'chosen'; a row holds either ranked answers or a pair. Remove",
        ),
        ({"ranks": [1, 2]}, r"'scores' \(higher is better\) beside 'ranks' .*need one of them. Remove or rename"),
        ({"margin": 1.0}, "a column 'margin' beside 'responses'; .* Set margin_scale instead, and remove or rename"),
        ({"scores": ...}, "column 'scores' missing; .*'scores' .higher is better. or 'ranks' .1 is the best"),
        ({"scores": ..., "score": [1, 2]}, "column 'scores' missing; .*in a recipe, columns: {scores: score}"),
        ({"prompt": ...}, "column 'prompt' missing; .*Ranked answers need 'prompt', 'responses' and"),
    ],
)
def test_columns_that_do_not_go_together(tmp_path, change, message):
    row = {key: value for key, value in (ranked(1, 2) | change).items() if value is not ...}
    with pytest.raises(SimPOError, match=message):
        tokenize([row])
    with pytest.raises(SimPOError, match=message.replace("train: ", "")):
        load(write(tmp_path / "ranked.jsonl", [row]))
    with pytest.raises(SimPOError, match=message):
        tokenize_stream(Dataset.from_list([row]).to_iterable_dataset(), toy_tokenizer(), RowSettings(**LENGTHS))


def test_scores_beside_a_pair_are_another_column():
    row = {"prompt": "p", "chosen": " a", "rejected": " b", "scores": [2.0, 1.0]}
    assert tokenize([row])[0].column_names == ["row", "prompt_ids", "chosen_ids", "rejected_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_ids": [[3, 2], []]}, "answer 1 in response_ids of row 1 is empty; it needs"),
        ({"response_ids": []}, "response_ids of row 1 is empty"),
        ({"chosen": [0, 1]}, "row 1 has 2 entries in chosen and 1 in rejected; each pair"),
        ({"chosen": [], "rejected": []}, "row 1 has 0 entries in chosen and 0 in rejected"),
        (
            {"rejected": [2]},
            "row 1 has the pair of answers 0 and 2; it has 2 answers, and a pair is two different indices",
        ),
        ({"rejected": [-1]}, "row 1 has the pair of answers 0 and -1"),
        ({"rejected": [0]}, "row 1 has the pair of answers 0 and 0"),
        (
            {"margin": [0.1, 0.2]},
            r"the margin of row 1 is \[0.1, 0.2\]; a ranked row needs a list with one number for each",
        ),
        ({"margin": [-0.1]}, "the margin of row 1 is -0.1; it must be a finite number"),
        ({"prompt_ids": [1] * 3000}, "row 1 has 3002 tokens and max_length is 2048"),
    ],
)
def test_token_rows_that_cannot_be(tmp_path, change, message):
    good = {"prompt_ids": [1], "response_ids": [[3, 2], [4, 2]], "chosen": [0], "rejected": [1]}
    with pytest.raises(SimPOError, match=message):
        make_trainer(tmp_path, [{**good, **({"margin": [1.0]} if "margin" in change else {})}, {**good, **change}])


# ---- Sources ----

ULTRAFEEDBACK = [
    {
        "source": "evol_instruct",
        "instruction": f"What is {i}?",
        "models": ["m1", "m2", "m3"],
        "completions": [
            {"model": "m1", "response": "A guess.", "overall_score": 4.0, "annotations": {"help": "x"}},
            {"model": "m2", "response": f"It is {i}.", "overall_score": 8.5, "annotations": {"help": "y"}},
            {"model": "m3", "response": "Well.", "overall_score": None if i == 1 else 6.0, "annotations": None},
        ],
    }
    for i in range(4)
]
COLUMNS = {"prompt": "instruction", "responses": "completions.response", "scores": "completions.overall_score"}


def as_words(rows):
    """The same with scores as text, and keys that not all completions have."""
    rows = json.loads(json.dumps(rows))
    for row in rows:
        for number, completion in enumerate(row["completions"]):
            completion["overall_score"] = str(completion["overall_score"] or "N/A")
            completion[f"k{number}"] = number
        row["completions"][0]["k1"] = "text"
    return rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("written", [list, as_words])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_ultrafeedback(tmp_path, streaming, written, suffix, monkeypatch):
    monkeypatch.setattr(preferences, "_shuffled_stream", lambda stream, *args: stream)  # rows are compared in order
    if suffix == ".parquet" and written is as_words:
        pytest.skip("Parquet has no such columns")
    path = write(tmp_path / f"rows{suffix}", written(ULTRAFEEDBACK))
    config = {"dataset_name": path, "columns": COLUMNS, "streaming": streaming}

    def said_in(rows):
        tokenized, report = tokenize(Dataset.from_list(list(rows), features=rows.features))
        assert report.left_out["bad_score"].count == 1
        tokenizer = toy_tokenizer()
        prompts = [tokenizer.decode(row["prompt_ids"]) for row in tokenized]
        return prompts, [said(row, tokenizer) for row in tokenized]

    text, _ = load_preferences(DataConfig(**config))
    pairs = ["It is {}.Well.", "It is {}.A guess.", "Well.A guess."]
    expected = [[pair.format(i) for pair in (pairs if i != 1 else pairs[1:2])] for i in range(4)]
    assert said_in(text) == ([f"<s>What is {i}?" for i in range(4)], expected)
    chat, _ = load_preferences(DataConfig(**config, dataset_format="alpaca"))
    assert set(chat.column_names) == {"prompt", "responses", "scores"}
    prompts = [f"<|im_start|>user\nWhat is {i}?<|im_end|>\n<|im_start|>assistant\n" for i in range(4)]
    assert said_in(chat) == (prompts, expected)


def test_places_inside_lists_that_are_not_there(tmp_path):
    path = write(tmp_path / "rows.jsonl", ULTRAFEEDBACK)
    with pytest.raises(
        SimPOError, match="'completions' has no 'respons'; there is .*'response'.* Did you mean response?"
    ):
        load(path, columns={**COLUMNS, "responses": "completions.respons"})
    path = write(tmp_path / "mixed.jsonl", as_words(ULTRAFEEDBACK))
    with pytest.raises(SimPOError, match="rows have no 'score'; there is .*'overall_score'"):
        load(path, columns={**COLUMNS, "scores": "completions.score"})


SHAREGPT = {
    "conversations": [{"from": "human", "value": "What is 2 + 3?"}],
    "responses": [{"from": "gpt", "value": text} for text in ("5", "6", "7")],
}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What is 2 + 3?", "responses": ["5", "6", "7"]},
        SHAREGPT,
        {**SHAREGPT, "responses": [assistant(text) for text in ("5", "6", "7")]},
        {"prompt": [user("What is 2 + 3?")], "responses": [assistant(text) for text in ("5", "6", "7")]},
    ],
    ids=["alpaca", "sharegpt", "sharegpt-roles", "messages"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_formats_of_ranked_answers(tmp_path, row, streaming):
    """Recognised, or as they are; a null answer stays null."""
    rows = [{**row, "scores": [3, 2, 1], "system": "Be brief."}, {**row, "ranks": None, "scores": [1, 2, 3]}]
    rows[1]["responses"] = [*row["responses"][:2], None]
    del rows[1]["ranks"]
    if "prompt" in row:
        rows = [{key: value for key, value in row.items() if key != "system"} for row in rows]
    train, _ = load(write(tmp_path / "rows.jsonl", rows), streaming=streaming)
    tokenized, report = tokenize(Dataset.from_list(list(train), features=train.features))
    assert sorted(said(row, toy_tokenizer()) for row in tokenized) == [["56", "57", "67"], ["65"]]
    assert report.left_out["missing_field"].count == 1


def test_a_column_that_is_named_comes_before_its_rival(tmp_path):
    row = {**ULTRAFEEDBACK[0], "chosen": "x", "rejected": "y", "ranks": [1, 2, 3]}
    path = write(tmp_path / "rows.jsonl", [row])
    assert load(path, columns=COLUMNS)[0].column_names == ["prompt", "responses", "scores"]
    assert load(path, columns={"prompt": "instruction"})[0].column_names == ["prompt", "chosen", "rejected"]


@pytest.mark.slow
def test_mixtures_of_ranked_sets(tmp_path):
    files = {
        "whole": [{**ranked(1, 2), "scores": [1, 2]}, ranked(3, 4)],
        "fractions": [ranked(1.5, 2), ranked("3", "4")],
        "pairs": [{"prompt": "p", "chosen": " a", "rejected": " b"}],
        "ranks": [{"prompt": "p", "responses": [" a", " b"], "ranks": [1, 2]}],
        "chat": [{"prompt": [user("p")], "responses": [[assistant("a")], [assistant("b")]], "scores": [1, 2]}],
        "asked": [{"prompt": "p", "responses": [[assistant("a")], [assistant("b")]], "scores": [1, 2]}],
        "single": [{"prompt": [user("p")], "responses": [assistant("a"), assistant("b")], "scores": [1, 2]}],
    }
    for row in files["fractions"][1:]:
        row["scores"] = [3.0, 4.0]
    paths = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}

    def mixed(*names):
        return load_preferences(DataConfig(dataset_mixer={paths[name]: 1 for name in names}))[0]

    assert len(tokenize(mixed("whole", "fractions"))[0]) == 4
    assert len(tokenize(mixed("chat", "single"))[0]) == 2
    for other, message in (("pairs", "has pairs"), ("ranks", "has ranked answers with ranks")):
        with pytest.raises(SimPOError, match=rf"has ranked answers with scores and .*{message}; .*one kind. Convert"):
            mixed("whole", other)
    with pytest.raises(SimPOError, match="Column 'prompt' is text in .* and a list of messages in .*must agree"):
        mixed("whole", "chat")
    with pytest.raises(SimPOError, match="Column 'responses' is a list of texts in .* and a list of messages in .*"):
        mixed("whole", "asked")


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
