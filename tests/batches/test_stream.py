"""Training from a stream: the pairs of a set in the stream's order, on any split, to a said end."""

import json
import logging
from itertools import islice

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset, IterableDatasetDict, load_dataset

from models import EOS, as_text, random_pairs, tiny_model, word_tokenizer
from runs import PLAIN_STEPS, assert_same_run, assert_same_weights, epoch_rows, make_trainer, train_log, weights_of
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.batches.loader import pair_loader
from simpo_trainer.batches.stream import StreamedPairs
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run
from simpo_trainer.tokens import reporter
from simpo_trainer.tokens.rows import TOKEN_COLUMNS
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import toy_pairs, toy_tokenizer

ROWS = random_pairs(22)
LENGTHS = {"max_length": 64, "max_prompt_length": 32, "overlong": "truncate"}


def stream_of(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


# Rows that survive as text: answers that are not empty and not the same.
TEXT_ROWS = [row for row in random_pairs(40) if min(len(row["chosen_ids"]), len(row["rejected_ids"])) > 1]


def numbered(count):
    return [{"prompt_ids": [1], "chosen_ids": [number, EOS], "rejected_ids": [EOS]} for number in range(count)]


def numbers(batches, steps):
    """Which of the `numbered` rows the first micro-batches hold."""
    return [[row["chosen_ids"][0] for row in batch] for batch in islice(batches, steps)]


def streamed_trainer(folder, rows, **settings):
    return SimPOTrainer(
        tiny_model(),
        SimPOConfig(str(folder), use_cpu=True, **{**PLAIN_STEPS, **LENGTHS, "max_steps": 2, **settings}),
        train_dataset=stream_of(rows),
        processing_class=word_tokenizer(),
    )


# ---- The same training ----


@pytest.mark.slow
def test_a_stream_trains_as_the_same_rows_in_a_set(tmp_path):
    whole = make_trainer(tmp_path / "set", ROWS[:16], num_train_epochs=1)
    whole.train()
    streamed = streamed_trainer(tmp_path / "stream", epoch_rows(ROWS[:16]))
    streamed.train()
    assert len(train_log(streamed, "loss")) == 2
    assert_same_run(streamed, whole, tolerance=1e-6)


@pytest.mark.slow
def test_text_is_tokenized_as_in_a_set(tmp_path):
    rows = TEXT_ROWS[:16]
    whole = make_trainer(tmp_path / "set", [as_text(row) for row in rows], num_train_epochs=1)
    whole.train()
    streamed = streamed_trainer(tmp_path / "stream", [as_text(row) for row in epoch_rows(rows)])
    streamed.train()
    assert_same_run(streamed, whole, tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(4, 2), (1, 8)])
def test_the_split_changes_nothing(tmp_path, split):
    whole = streamed_trainer(tmp_path / "8x1", ROWS)
    whole.train()
    batch_size, accumulation = split
    streamed = streamed_trainer(
        tmp_path / "split", ROWS, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
    )
    streamed.train()
    assert_same_run(streamed, whole, tolerance=1e-5)


@pytest.mark.slow
def test_passes_over_the_stream_and_resume(tmp_path):
    """Five steps are two and a half passes over 22 rows; the checkpoint is from the middle of the third."""
    whole = streamed_trainer(tmp_path / "whole", ROWS, max_steps=6, save_strategy="steps", save_steps=5)
    whole.train()
    assert train_log(whole, "num_pairs_seen") == [(8,), (16,), (24,), (32,), (40,), (48,)]
    losses = [loss for (loss,) in train_log(whole, "loss")]
    assert len(set(losses)) == 6  # weights move on, so no pass repeats another's losses
    resumed = streamed_trainer(tmp_path / "resumed", ROWS, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert train_log(resumed, "loss")[-1] == pytest.approx(train_log(whole, "loss")[-1], rel=1e-6)
    assert_same_weights(weights_of(resumed), weights_of(whole), tolerance=1e-6)


# ---- Dealing out ----


def test_processes_share_each_micro_step():
    shares = [
        numbers(
            StreamedPairs(numbered(19), batch_size=2, num_processes=2, process_index=i, accumulation=2, max_length=9), 5
        )
        for i in range(2)
    ]
    assert shares == [[[0, 1], [4, 5], [8, 9], [12, 13], [0, 1]], [[2, 3], [6, 7], [10, 11], [14, 15], [2, 3]]]


def test_the_end_is_told(caplog):
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        batches = numbers(StreamedPairs(numbered(11), batch_size=2, accumulation=2, max_length=9), 6)
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1], [2, 3]]
    assert "train: 11 of 11 pairs; the longest has 3 tokens" in caplog.text
    assert "Its last 3 pairs do not fill an optimiser step of 4 and are left out" in caplog.text


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_read_the_same_pairs_in_the_same_order(tmp_path, workers, caplog):
    """Also of several files, which `datasets` would share out among workers, and behind rows that are skipped."""
    for file in range(4):
        rows = [json.dumps(row) for row in numbered(20)[5 * file : 5 * file + 5]]
        (tmp_path / f"train-{file}.jsonl").write_text("\n".join(rows))
    files = sorted(map(str, tmp_path.glob("*.jsonl")))
    stream = load_dataset("json", data_files=files, split="train", streaming=True).skip(2)
    args = SimPOConfig(str(tmp_path), use_cpu=True, dataloader_num_workers=workers).settled()
    pairs = StreamedPairs(stream, batch_size=2, accumulation=2, max_length=9)
    loader = pair_loader(None, pairs, lambda batch: batch, args)
    assert numbers(loader, 4) == [[2, 3], [4, 5], [6, 7], [8, 9]]
    assert ("A stream is read by one worker, not 2" in caplog.text) == (workers == 2)


def test_every_pair_has_its_place_and_weight():
    batch = next(iter(StreamedPairs(numbered(3), batch_size=3, max_length=9)))
    assert [(row["row"], row["weight"]) for row in batch] == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_a_stream_that_shuffles_does_so_anew_in_each_pass():
    rows = stream_of(numbered(64)).shuffle(seed=1, buffer_size=64).map(lambda row: row)
    pairs = StreamedPairs(rows, batch_size=8, max_length=9)
    batches = numbers(pairs, 16)
    first, second = ([number for batch in part for number in batch] for part in (batches[:8], batches[8:]))
    assert sorted(first) == sorted(second) == list(range(64))
    assert list(range(64)) != first != second
    assert numbers(pairs, 16) == batches


# ---- Rows that cannot be trained on ----


def test_token_rows_of_a_stream_are_those_of_a_set():
    raw = [*toy_pairs(150, conversational=True), {"prompt": None, "chosen": None, "rejected": None}]
    tokenizer = toy_tokenizer()
    expected, report = tokenize_preferences(Dataset.from_list(raw), tokenizer, RowSettings(**LENGTHS))
    found = list(tokenize_stream(stream_of(raw), tokenizer, RowSettings(**LENGTHS)))
    assert [row["reason"] for row in found[149:]] == [None, "missing_field"]
    kept = [row for row in found if row["reason"] is None]
    assert [[row[name] for name in TOKEN_COLUMNS] for row in kept] == [
        [row[name] for name in TOKEN_COLUMNS] for row in expected
    ]
    assert (len(kept), report.rows_kept) == (150, 150)


def test_dropped_rows_are_left_out_and_counted(caplog):
    raw = [*toy_pairs(3), {"prompt": "Hi", "chosen": " same", "rejected": " same"}, *toy_pairs(2)]
    rows = tokenize_stream(stream_of(raw), toy_tokenizer(), RowSettings(**LENGTHS))
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        batches = list(islice(StreamedPairs(rows, batch_size=5, max_length=64), 2))
    assert [row["row"] for batch in batches for row in batch] == [0, 1, 2, 4, 5] * 2
    assert "train: 5 of 6 pairs" in caplog.text
    assert "dropped 1 (identical_answers, first row 3)" in caplog.text


def test_a_stream_of_which_most_is_dropped_is_given_up(monkeypatch):
    monkeypatch.setattr(reporter, "_TRIAL", 4)
    bad = {"prompt": "Hi", "chosen": " same", "rejected": " same"}
    rows = tokenize_stream(stream_of([bad, bad, bad, *toy_pairs(100)]), toy_tokenizer(), RowSettings(**LENGTHS))
    with pytest.raises(SimPOError, match="train: 3 of 4 pairs cannot be trained on.*\n.*identical_answers"):
        list(StreamedPairs(rows, batch_size=1, max_length=64))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"margin": -1.0}, "the margin of row 1 is -1.0"),
        ({"chosen_ids": []}, "row 1 of the stream: chosen_ids of row 0 is empty"),
        ({"prompt_ids": [1] * 9}, "row 1 of the stream: row 0 has 11 tokens and max_length is 9"),
    ],
)
def test_rows_that_stop_the_run(row, message):
    first, second = ({"margin": 0.0, **row} for row in numbered(2))
    with pytest.raises(SimPOError, match=message):
        list(StreamedPairs([first, {**second, **row}], batch_size=1, max_length=9))


def test_a_stream_that_breaks_off_is_told():
    def rows():
        yield from numbered(2)
        raise pa.ArrowInvalid("JSON parse error: Column() changed from string to number in row 2")

    stream = IterableDataset.from_generator(rows)
    with pytest.raises(SimPOError, match="train.*changed from string to number"):
        list(StreamedPairs(stream, batch_size=1, max_length=9))


def test_overlong_error():
    settings = {**LENGTHS, "max_length": 12, "max_prompt_length": 6, "overlong": "error"}
    rows = tokenize_stream(stream_of(toy_pairs(5)), toy_tokenizer(), RowSettings(**settings))
    with pytest.raises(SimPOError, match="train: 1 of 1 pairs exceed max_length=12 .first: row 0"):
        list(StreamedPairs(rows, batch_size=1, max_length=12, overlong="error"))


def test_a_conversation_among_texts_is_dropped():
    mixed = [toy_pairs(1)[0], toy_pairs(1, conversational=True)[0]]
    rows = tokenize_stream(IterableDataset.from_generator(lambda: iter(mixed)), toy_tokenizer(), RowSettings(**LENGTHS))
    assert [row["reason"] for row in rows] == [None, "wrong_type"]


# ---- What a stream cannot do ----


def test_fewer_pairs_than_a_step_takes():
    with pytest.raises(
        SimPOError, match="the stream has 3 pairs that can be trained on, and an optimiser step takes 4"
    ):
        list(StreamedPairs(numbered(3), batch_size=2, accumulation=2, max_length=9))


def test_a_stream_needs_max_steps(tmp_path):
    with pytest.raises(SimPOError, match="The training set is a stream, whose length is unknown.*Set max_steps"):
        streamed_trainer(tmp_path, ROWS, max_steps=-1)


def test_positions_are_checked_for_the_longest_possible_row(tmp_path):
    with pytest.raises(SimPOError, match="In a stream a prompt . answer may have 300 tokens, .* positions for 256"):
        streamed_trainer(tmp_path, ROWS, max_length=300)


@pytest.mark.parametrize("rows", [ROWS[:6], [as_text(row) for row in TEXT_ROWS[:6]]], ids=["ids", "texts"])
@pytest.mark.parametrize(
    "shape",
    [
        "dict",
        "evaluate",
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("one", "IterableDatasetDict", "predict")),
    ],
)
def test_a_stream_to_evaluate_on_is_read_once_and_kept(tmp_path, rows, shape):
    whole = Dataset.from_list(rows)
    reads = []

    def read():
        reads.append(1)
        yield from rows

    stream = IterableDataset.from_generator(read)
    given = {"dict": {"a": stream}, "IterableDatasetDict": IterableDatasetDict({"a": stream})}.get(shape, stream)
    expected = make_trainer(tmp_path, None, eval_dataset=whole)
    if shape in ("evaluate", "predict"):
        method = getattr(make_trainer(tmp_path, None, eval_dataset=whole), shape)
        found, wanted = method(given), getattr(expected, shape)(whole)
        if shape == "predict":
            assert (found.predictions == wanted.predictions).all()
            return
    else:
        trainer = make_trainer(tmp_path, None, eval_dataset=given)
        reads.clear()
        found, again, wanted = trainer.evaluate(), trainer.evaluate(), expected.evaluate()
        assert not reads and found.keys() == again.keys()
    prefix = "eval_a_" if shape in ("dict", "IterableDatasetDict") else "eval_"
    for name in ("loss", "rewards/margins", "num_pairs"):
        assert found[f"{prefix}{name}"] == wanted[f"eval_{name}"]


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("made", [iter, lambda rows: "rows.jsonl", lambda rows: 3, pd.DataFrame, lambda rows: ["text"]])
def test_other_objects_are_refused(tmp_path, name, made):
    kind = type(made(ROWS)).__name__
    with pytest.raises(SimPOError, match=f"must be a `Dataset` or an `IterableDataset`.* list of dicts; found {kind}"):
        SimPOTrainer(
            tiny_model(),
            SimPOConfig(str(tmp_path), use_cpu=True),
            processing_class=word_tokenizer(),
            **{name: made(ROWS)},
        )


def test_an_empty_stream():
    with pytest.raises(SimPOError, match="train: the stream has no rows"):
        tokenize_stream(IterableDataset.from_generator(lambda: iter(())), toy_tokenizer(), RowSettings(**LENGTHS))


def test_a_stream_without_answers():
    with pytest.raises(SimPOError, match="column 'rejected' missing; the columns are 'prompt', 'chosen'"):
        tokenize_stream(stream_of([{"prompt": "a", "chosen": "b"}]), toy_tokenizer(), RowSettings(**LENGTHS))


# ---- By recipe ----


@pytest.mark.slow
def test_a_recipe_with_streaming(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in TEXT_ROWS))
    (tmp_path / "recipe.yaml").write_text(
        "model_name_or_path: model\ndataset_name: train.jsonl\noutput_dir: out\nstreaming: true\nmax_steps: "
        "3\nmax_length: 64\nmax_prompt_length: 32\n"
        "test_split_size: 4\nper_device_train_batch_size: 4\nlogging_steps: 1\nsave_strategy: 'no'\nuse_cpu: true\n"
    )
    metrics = run(load_recipe("recipe.yaml"))
    assert metrics["eval_num_pairs"] == 4
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["num_pairs_seen"] for entry in history if "loss" in entry] == [4, 8, 12]
    with pytest.raises(SimPOError, match="streaming does not tell how many pairs there are. Set max_steps"):
        load_recipe("recipe.yaml", ["--max_steps", "-1"])


def test_a_recipe_shuffles_its_stream_anew_in_each_pass(tmp_path, caplog):
    for name in ("a", "b"):
        rows = [json.dumps({"prompt": f"{name}{place}", "chosen": "x", "rejected": "y"}) for place in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    config = DataConfig(dataset_name=paths[0], streaming=True, test_split_size=5)
    train, test = load_preferences(config, seed=4)
    first = [row["prompt"] for row in train]
    assert test["prompt"][:] == [f"a{place}" for place in range(5)]
    assert sorted(first) == sorted(f"a{place}" for place in range(5, 30)) != first
    assert [row["prompt"] for row in load_preferences(config, seed=4)[0]] == first
    train.set_epoch(1)
    assert [row["prompt"] for row in train] != first
    load_preferences(DataConfig(dataset_mixer=dict.fromkeys(paths, 1.0), streaming=True))
    assert "The 2 sources of the stream are read one after the other" in caplog.text
