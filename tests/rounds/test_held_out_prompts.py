"""Which prompts are held out, and that a prompt is the same one after it was written and read."""

import json

import pytest

from answering import write_lines
from simpo_trainer.answers.prompts import load_prompts
from simpo_trainer.data.settings import DataConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.rounds.held_out_prompts import split_prompts
from simpo_trainer.rounds.iteration import written_row


def numbers(prompts):
    return [prompt.columns["number"] for prompt in prompts]


@pytest.fixture
def source(tmp_path):
    rows = [{"prompt": f"Count to {i % 10}", "number": i % 10} for i in range(30)]
    return write_lines(tmp_path / "prompts.jsonl", rows)


@pytest.mark.parametrize(("size", "count"), [(0.25, 3), (0.2, 2), (4, 4)])
def test_a_share_of_the_prompts_is_held_out_and_not_of_the_rows(source, size, count):
    split = split_prompts(DataConfig(dataset_name=str(source), test_split_size=size))
    assert len(split.held_out) == count and len(split.train) == 10 - count
    assert sorted(numbers(split.train + split.held_out)) == list(range(10))


def test_a_split_named_test_is_held_out(tmp_path):
    (tmp_path / "data").mkdir()
    for name, first in (("train", 0), ("test", 5)):
        rows = [{"prompt": f"Count to {i}", "number": i} for i in range(first, first + 6)]
        write_lines(tmp_path / "data" / f"{name}.jsonl", rows)
    split = split_prompts(DataConfig(dataset_name=str(tmp_path / "data")))
    assert sorted(numbers(split.held_out)) == [5, 6, 7, 8, 9, 10]
    assert sorted(numbers(split.train)) == [0, 1, 2, 3, 4]


def test_nothing_left_to_train_on_is_an_error(source):
    with pytest.raises(SimPOError, match="Each of the 10 prompts to train on is held out too"):
        split_prompts(DataConfig(dataset_name=str(source), eval_dataset_name=str(source)))


def test_a_prompt_is_the_same_after_it_was_written(tmp_path):
    tools = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}]
    rows = [
        {"prompt": "Count", "right": [1, 2], "topic": None},
        {"prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Count"}], "topic": "a"},
        {"prompt": "Count again", "tools": json.dumps(tools), "chat_template_kwargs": json.dumps({"thinking": False})},
    ]
    first = load_prompts(DataConfig(dataset_name=str(write_lines(tmp_path / "rows.jsonl", rows)))).prompts
    assert any("tools" in prompt.template_kwargs for prompt in first)
    written = write_lines(tmp_path / "written.jsonl", [written_row(prompt) for prompt in first])
    again = load_prompts(DataConfig(dataset_name=str(written))).prompts
    assert [(each.hash, each.columns) for each in again] == [(each.hash, each.columns) for each in first]
