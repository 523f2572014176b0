"""What comes out of the work on rows, and that it is done once."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from models import tiny_model
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens import tokenization
from simpo_trainer.tokens.pair_tokenizer import PairTokenizer
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.shown import render_row
from token_rows import ALTERNATING, BOS_CHATML, SYSTEM, load, pair, tokenize
from toy import (
    CHATML,
    ToySlowTokenizer,
    toy_pairs,
    toy_tokenizer,
    user,
)

# --- What comes out ---------------------------------------------------------------------------------------------------


def test_columns_and_margin_follow_the_rows():
    rows = [{**row, "score": 1, "margin": i} for i, row in enumerate(toy_pairs(4))]
    rows[1]["chosen"] = ""
    tokenized, _ = tokenize(rows, toy_tokenizer())
    assert tokenized.column_names == ["row", "prompt_ids", "chosen_ids", "rejected_ids", "margin"]
    assert list(zip(tokenized["row"], tokenized["margin"], strict=True)) == [(0, 0.0), (2, 2.0), (3, 3.0)]
    assert "margin" not in tokenize(toy_pairs(2), toy_tokenizer())[0].column_names
    rows[2]["margin"] = -1
    with pytest.raises(SimPOError, match="train: the margin of row 2 is -1"):
        tokenize(rows, toy_tokenizer())


def test_template_arguments_of_a_row_reach_its_template():
    tokenizer = toy_tokenizer("{{ mood }}{{ tools[0].name if tools }}" + CHATML)
    rows = toy_pairs(2, conversational=True)
    rows[0] |= {"chat_template_kwargs": {"mood": "!"}, "tools": None}
    rows[1] |= {"chat_template_kwargs": None, "tools": '[{"name": "add"}]'}
    tokenized, _ = tokenize(rows, tokenizer)
    starts = [tokenizer.decode(row["prompt_ids"]).split("<|im_start|>")[0] for row in tokenized]
    assert starts == ["!", "add"]


def test_report_is_plain_values():
    _, report = tokenize([*toy_pairs(2), pair("p", "")], toy_tokenizer())
    assert json.loads(json.dumps(dataclasses.asdict(report)))["dropped"]["empty_answer"]["first_row"] == 2
    assert report.lines()[0].startswith("train: 2 of 3 pairs; the longest has ")


def test_rendered_pair_shows_what_is_scored():
    tokenizer = toy_tokenizer()
    tokenized, _ = tokenize([*toy_pairs(1, conversational=True)], tokenizer)
    assert render_row(tokenized[0], tokenizer).split("\n") == [
        f"row 0: prompt, {len(tokenized[0]['prompt_ids'])} tokens",
        "    <|im_start|>user",
        "    What is 0 and 0?<|im_end|>",
        "    <|im_start|>assistant",
        "",
        f"chosen, {len(tokenized[0]['chosen_ids'])} tokens scored",
        "    ⟦The sum is 0.<|im_end|>⟧",
        f"rejected, {len(tokenized[0]['rejected_ids'])} tokens scored",
        "    ⟦I guess 1<|im_end|>⟧",
    ]
    long = {**tokenized[0], "chosen_ids": [tokenizer.bos_token_id] * 1000}
    assert "[... 880 tokens ...]" in render_row(long, tokenizer)
    assert render_row(long, tokenizer).count("<s>") == 120


@pytest.mark.parametrize("rank, hidden", [("0", 0), ("1", 1)])
def test_bars_are_shown_on_the_main_process_only(monkeypatch, rank, hidden):
    calls = []
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: calls.append(rank))
    monkeypatch.setenv("RANK", rank)
    tokenize(toy_pairs(2), toy_tokenizer())
    assert len(calls) == hidden


# --- The cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    rows = toy_pairs(20, conversational=True)
    rows[4]["chosen"] = None
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


@pytest.mark.slow
def test_several_processes_give_the_rows_of_one(source):
    one, report = tokenize(load(source), toy_tokenizer())
    assert one["row"][:] == [0, 1, 2, 3, *range(5, 20)]
    for file in source.parent.glob("cache/**/cache-*.arrow"):
        file.unlink()
    two, other_report = tokenize(load(source), toy_tokenizer(), num_proc=2)
    assert two.to_list() == one.to_list() and other_report == report
    assert len(list(source.parent.glob("cache/**/cache-*_of_00002.arrow"))) == 2, "the premise: two processes worked"


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that were tokenized, not read from the cache."""
    sizes = []
    work = PairTokenizer.__call__

    def count(self, batch, indices):
        sizes.append(len(indices))
        return work(self, batch, indices)

    monkeypatch.setattr(PairTokenizer, "__call__", count)
    return sizes


def test_second_run_reads_the_cache(source, batches):
    first, report = tokenize(load(source), toy_tokenizer())
    assert sum(batches) == 20
    used = toy_tokenizer()
    used(["a", "a longer text"], padding=True, truncation=True, max_length=4)  # leaves its state in the tokenizer
    second, second_report = tokenize(load(source), used)
    assert sum(batches) == 20
    assert second.to_list() == first.to_list() and second_report == report


def test_template_that_writes_the_date_is_rendered_anew_on_another_day(source, batches, monkeypatch):
    class Tomorrow(tokenization.date):
        @classmethod
        def today(cls):
            return cls(2222, 2, 2)

    dated = toy_tokenizer("{{ strftime_now('%d') }}" + CHATML)
    for tokenizer, sizes in ((toy_tokenizer(), [20, 20]), (dated, [40, 60])):
        with monkeypatch.context() as patch:
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[0]
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[0]
            patch.setattr(tokenization, "date", Tomorrow)
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[1]


def test_whatever_changes_the_ids_changes_the_key(source, batches):
    other_end = toy_tokenizer()
    other_end.eos_token = "<|im_start|>"
    slow_with_bos = ToySlowTokenizer(chat_template=CHATML)
    slow_with_bos.adds_bos = True
    changes = [
        {},
        {"max_length": 90, "max_prompt_length": 40},
        {"max_length": 90, "max_prompt_length": 41},
        {"max_length": 90, "max_prompt_length": 40, "overlong": "drop"},
        {"max_length": 90, "max_prompt_length": 40, "truncation_mode": "keep_start"},
        {"system_messages": "merge"},
        {"system_messages": "drop"},
        {"auto_insert_empty_system_msg": True},
        {"tokenizer": toy_tokenizer(BOS_CHATML)},
        {"tokenizer": toy_tokenizer(eos="</s>")},
        {"tokenizer": toy_tokenizer(adds_bos=False)},
        {"tokenizer": other_end},
        {"tokenizer": ToySlowTokenizer(chat_template=CHATML)},
        {"tokenizer": slow_with_bos},
    ]
    for run, change in enumerate(changes, start=1):
        tokenize(load(source), **{"tokenizer": toy_tokenizer(), **change})
        assert sum(batches) == 20 * run
    tokenize(load(source), toy_tokenizer(), overlong="error")
    tokenize(load(source), ToySlowTokenizer(chat_template=CHATML))
    assert sum(batches) == 20 * (len(changes) + 1)
    tokenize(load(source).select(range(10)), toy_tokenizer())
    assert sum(batches) == 20 * (len(changes) + 1) + 10
    source.write_text("".join(json.dumps(row) + "\n" for row in toy_pairs(10, conversational=True)))
    tokenize(load(source), toy_tokenizer())
    assert sum(batches) == 20 * (len(changes) + 1) + 20


@pytest.mark.slow
def test_key_is_the_same_in_another_process(source):
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from token_rows import load, tokenize\n"
        "from toy import toy_tokenizer\n"
        "print(tokenize(load(Path(sys.argv[1])), toy_tokenizer())[0].cache_files[0]['filename'])"
    )
    tests = Path(__file__).parents[1]
    places = [Path(__file__).parent, tests / "support", tests.parent]
    run = subprocess.run(
        [sys.executable, "-c", script, str(source), *map(str, places)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == tokenize(load(source), toy_tokenizer())[0].cache_files[0]["filename"]


# --- The settings of a run --------------------------------------------------------------------------------------------


def test_settings_reach_the_rows(tmp_path):
    rows = [
        {**row, "prompt": [SYSTEM, *row["prompt"][:-1], user("word " * 40)]}
        for row in toy_pairs(2, conversational=True)
    ]
    tokenizer = toy_tokenizer(ALTERNATING)

    def first_prompt(rows, tokenizer, **settings):
        args = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, max_length=64, max_prompt_length=40, **settings)
        trainer = SimPOTrainer(
            tiny_model(vocab_size=300), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])

    start = "<|im_start|>user\nBe brief.\n\n"
    header = "<|im_start|>assistant\n"
    assert not first_prompt(rows, tokenizer, system_messages="merge").startswith(start)
    prompt = first_prompt(rows, tokenizer, system_messages="merge", truncation_mode="keep_start")
    assert prompt.startswith(start) and prompt.endswith(header)
    prompt = first_prompt(
        toy_pairs(2, conversational=True),
        toy_tokenizer(),
        auto_insert_empty_system_msg=True,
        truncation_mode="keep_start",
    )
    assert prompt.startswith("<|im_start|>system\n")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"system_messages": "remove"}, "system_messages is 'remove'; it must be 'keep', 'merge' or 'drop'"),
        ({"truncation_mode": "keep_middle"}, "truncation_mode is 'keep_middle'; it must be 'keep_end' or 'keep_start'"),
        (
            {"auto_insert_empty_system_msg": True, "system_messages": "merge"},
            "auto_insert_empty_system_msg is true and system_messages is 'merge': one inserts .* Leave out one",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, message):
    with pytest.raises(SimPOError, match=message):
        SimPOConfig(output_dir=str(tmp_path), **settings)


# A value of each setting that differs from its default, with what must go with it.
_OTHER_VALUES = {
    "pairs": {"pairs": "adjacent"},
    "margin_scale": {"margin_scale": 0.5},
    "max_length": {"max_length": 90},
    "max_prompt_length": {"max_prompt_length": 40},
    "truncation_mode": {"truncation_mode": "keep_start"},
    "on_bad_row": {"on_bad_row": "drop"},
    "overlong": {"overlong": "drop"},
    "system_messages": {"system_messages": "merge"},
    "auto_insert_empty_system_msg": {"auto_insert_empty_system_msg": True},
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RowSettings)])
def test_every_setting_of_the_rows_is_in_the_key_of_the_cache(name, source, batches):
    """Rows of other settings are never read from the cache; a new setting needs no line anywhere but its own."""
    limits = {"max_length": 100, "max_prompt_length": 50}
    tokenize(load(source), toy_tokenizer(), **limits)
    tokenize(load(source), toy_tokenizer(), **limits)
    assert sum(batches) == 20, "the premise: the same settings read the cache"
    tokenize(load(source), toy_tokenizer(), **{**limits, **_OTHER_VALUES[name]})
    assert sum(batches) == 40


def test_whatever_the_work_reads_is_in_the_key_or_follows_from_it():
    """Of a field that is added to the work, the key of the cache must be told; then this list."""
    in_key = {"tokenizer", "turn_end", "prefix_ids", "settings"}
    of_the_rows = {"inputs", "ranked"}  # in the fingerprint of the set
    follows = {"features", "opening"}  # from the settings, the columns and the chat template
    assert {field.name for field in dataclasses.fields(PairTokenizer)} == in_key | of_the_rows | follows
