"""The prompts of every kind of rows, and rows that have none."""

import pytest

from answering import write_lines
from logs import warnings
from simpo_trainer import SimPOError
from simpo_trainer.answers.prompts import load_prompts
from simpo_trainer.data import DataConfig
from toy import assistant, user


@pytest.fixture
def load(tmp_path):
    def loaded(rows, **config):
        return load_prompts(DataConfig(dataset_name=str(write_lines(tmp_path / "rows.jsonl", rows)), **config))

    return loaded


def messages_of(prompts):
    return [prompt.messages for prompt in prompts.prompts]


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "config", "expected"),
    [
        ({"prompt": "Hi?"}, {}, [user("Hi?")]),
        ({"prompt": [SYSTEM, user("Hi?")]}, {}, [SYSTEM, user("Hi?")]),
        ({"prompt": '[{"role": "user", "content": "Hi?"}]'}, {}, [user("Hi?")]),
        ({"prompt": user("Hi?")}, {}, [user("Hi?")]),
        ({"prompt": "Hi?", "system": "Be brief."}, {}, [SYSTEM, user("Hi?")]),
        ({"question": "Hi?"}, {"columns": {"prompt": "question"}}, [user("Hi?")]),
        ({"a": {"b": "Hi?"}}, {"columns": {"prompt": "a.b"}}, [user("Hi?")]),
        ({"messages": [user("Hi?"), assistant("Hello.")]}, {}, [user("Hi?")]),
        (
            {"messages": [user("Hi?"), assistant("Hello."), user("And?")]},
            {},
            [user("Hi?"), assistant("Hello."), user("And?")],
        ),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}, {}, [user("Hi?")]),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, {}, [user("Add.\n1 1")]),
        ({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}, {}, [user("Hi?")]),
        ({"prompt": [user("Hi?")], "chosen": [assistant("Hello.")], "rejected": [assistant("No.")]}, {}, [user("Hi?")]),
        (
            {"chosen": [user("Hi?"), assistant("Hello.")], "rejected": [user("Hi?"), assistant("No.")]},
            {},
            [user("Hi?")],
        ),
        ({"prompt": "Hi?", "responses": ["a", "b"], "scores": [1, 2]}, {}, [user("Hi?")]),
        (
            {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
            {"dataset_format": "hh_rlhf"},
            [user("Hi?")],
        ),
        ({"instruction": "Add.", "chosen": "2", "rejected": "3"}, {}, [user("Add.")]),
    ],
)
def test_the_prompt_of_a_row(load, row, config, expected):
    assert messages_of(load([row, row], **config)) == [expected]


def test_equal_prompts_are_taken_once_and_rows_may_come_in_any_order(load, caplog):
    rows = [{"prompt": f"Say {i % 4}", "note": "b" if i < 4 else "a", "n": i % 4} for i in range(8)]
    found = load(rows)
    assert (len(found.prompts), found.rows, found.repeated) == (4, 8, 4)
    assert {prompt.columns["note"] for prompt in found.prompts} == {"a"}
    assert [prompt.hash for prompt in found.prompts] == sorted(prompt.hash for prompt in found.prompts)
    backwards = load(rows[::-1])
    assert found.prompts == backwards.prompts
    assert "4 rows repeat a prompt" in caplog.text


def test_tools_and_template_arguments_are_part_of_the_prompt(load):
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [
        {"prompt": "Hi?", "tools": None},
        {"prompt": "Hi?", "tools": tools, "chat_template_kwargs": {"think": False}},
    ]
    found = load(rows).prompts
    assert len(found) == 2
    assert {"tools": tools, "think": False} in [prompt.template_kwargs for prompt in found]


def test_objects_of_other_columns_keep_their_nulls(load):
    """A function that scores answers reads what the file says."""
    rows = [{"prompt": f"Say {i}", "rules": [{"kind": "a", "value": None if i else "x"}]} for i in range(2)]
    assert sorted(str(prompt.columns["rules"][0]["value"]) for prompt in load(rows).prompts) == ["None", "x"]
    pairs = [{**row, "chosen": "a", "rejected": "b"} for row in rows]
    assert all("value" in prompt.columns["rules"][0] for prompt in load(pairs).prompts)


def test_columns_of_answers_are_not_kept(load):
    """A row of answers, or of pairs, can be answered again."""
    own = {"key": "1", "answers": ["a"], "finish_reasons": ["stop"], "token_counts": [1], "seeds": [13]}
    pair = {"chosen": "a", "rejected": "b", "chosen_score": 1.0, "rejected_score": 0.0, "margin": 0.1}
    for row in ({"prompt": "Hi?", "kind": "x", **own}, {"prompt": "Hi?", "kind": "x", **pair, "key": "1"}):
        [prompt] = load([row]).prompts
        assert prompt.columns == {"kind": "x"}


def test_rows_without_a_prompt_are_counted_by_the_reason(load, caplog):
    rows = [
        {"prompt": [user("Hi?")]},
        {"prompt": [SYSTEM]},
        {"prompt": [user("Hi?"), assistant("Hello.")]},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [{"role": "tool", "content": "4"}]},
    ]
    found = load(rows)
    assert messages_of(found) == [[user("Hi?")]]
    counts = {reason: each.count for reason, each in found.dropped.items()}
    assert counts == {"prompt_end": 2, "no_prompt": 2, "no_user_turn": 1}
    assert any("row 5" in text and "no user message" in text for text in warnings(caplog))


def test_no_prompt_at_all_is_an_error(load):
    with pytest.raises(SimPOError, match="None of 2 rows has a prompt"):
        load([{"prompt": ""}, {"prompt": None}])


def test_a_column_of_another_name_is_guessed(load):
    with pytest.raises(SimPOError, match=r"columns: \{prompt: question\}"):
        load([{"question": "Hi?", "id": 1}])
