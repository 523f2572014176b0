"""Rows to messages: the explicit prompt, what makes no pair, and what becomes of system messages."""

from copy import deepcopy
from itertools import product

import pytest
from datasets import Json, List, Value

from simpo_trainer.data.drops import REASONS, RowDropped
from simpo_trainer.data.messages import (
    check_answer,
    check_prompt,
    explicit_prompt,
    row_template_kwargs,
    settle_system_messages,
    split_common_text,
    without_filled_keys,
)
from toy import assistant, user


def dropped(reason: str, function, *args) -> str:
    with pytest.raises(RowDropped) as caught:
        function(*args)
    assert caught.value.reason == reason
    assert reason in REASONS
    return caught.value.detail


TURN, YES, NO = [user("Hi")], [assistant("Yes.")], [assistant("No.")]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "Hi", "chosen": " Yes", "rejected": " No"}, ("Hi", " Yes", " No")),
        ({"prompt": TURN, "chosen": YES, "rejected": NO}, (TURN, YES, NO)),
        ({"chosen": "Hi: Yes", "rejected": "Hi: No"}, ("Hi:", " Yes", " No")),
        ({"chosen": TURN + YES, "rejected": TURN + NO}, (TURN, YES, NO)),
        # UltraFeedback-binarized: the prompt as a string beside whole conversations.
        ({"prompt": "Hi", "chosen": TURN + YES, "rejected": TURN + NO}, (TURN, YES, NO)),
        ({"chosen": YES, "rejected": NO}, ([], YES, NO)),
        # A string beside the answers alone: what the user says.
        ({"prompt": "Hi", "chosen": YES, "rejected": NO}, (TURN, YES, NO)),
        ({"prompt": " \n", "chosen": YES, "rejected": NO}, ([], YES, NO)),
        ({"prompt": "Hi", "chosen": TURN, "rejected": NO}, ([], TURN, NO)),
        ({"prompt": "Hi", "chosen": YES, "rejected": YES + NO}, (YES, [], NO)),
        # One conversation is the beginning of the other.
        ({"chosen": TURN + YES + TURN + YES, "rejected": TURN + YES}, (TURN + YES, TURN + YES, [])),
    ],
)
def test_explicit_prompt(row, expected):
    assert explicit_prompt(row) == expected


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "missing_field"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "missing_field"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "missing_field"),
        ({"prompt": "p", "chosen": "a", "rejected": NO}, "wrong_type"),
        ({"prompt": TURN, "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": 3, "chosen": YES, "rejected": NO}, "wrong_type"),
        ({"prompt": "p", "chosen": 1, "rejected": 2}, "wrong_type"),
        ({"chosen": "Hi", "rejected": "Hi"}, "identical_answers"),
        ({"chosen": TURN + YES, "rejected": TURN + YES}, "identical_answers"),
    ],
)
def test_rows_without_prompt_and_answers(row, reason):
    dropped(reason, explicit_prompt, row)


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("Is it? yes", "Is it? yet", "Is it?"),
        ("Is it? yes", "Is it? no", "Is it?"),
        ("Is it?\nyes", "Is it?\nyet", "Is it?\n"),
        ("Is it?  yes", "Is it?  no", "Is it? "),
        ("yes", "yet", ""),
        ("yes", "no", ""),
        ("go on", "go on now", "go"),
        ("go on", "go", ""),
    ],
)
def test_common_text_is_cut_between_words(chosen, rejected, prompt):
    assert split_common_text(chosen, rejected)[0] == prompt


def test_common_text_loses_nothing_and_divides_no_word():
    texts = ["".join(letters) for letters in product("ab \n", repeat=4)]
    for chosen, rejected in product(texts[::3], texts[::5]):
        if chosen != rejected:
            prompt, *rest = split_common_text(chosen, rejected)
            assert [prompt + rest[0], prompt + rest[1]] == [chosen, rejected]
            for answer in rest:
                assert not (prompt and answer) or prompt[-1].isspace() or answer[0].isspace()


@pytest.mark.parametrize(
    "prompt, chosen, reason",
    [
        ([], YES, "no_prompt"),
        (TURN + YES, YES, "prompt_end"),
        ([{"role": "system", "content": "s"}], YES, "prompt_end"),
        (TURN, [], "answer_messages"),
        (TURN, TURN, "answer_messages"),
        (TURN, YES + TURN + YES, "answer_messages"),
        (TURN, [assistant(" \n")], "empty_answer"),
        (TURN, [assistant(None)], "bad_message"),
        (TURN, [{"content": "Yes."}], "bad_message"),
        (TURN, ["Yes."], "bad_message"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], YES, "bad_message"),
        ([{"role": None, "content": "Hi"}], YES, "bad_message"),
    ],
)
def test_messages_that_make_no_pair(prompt, chosen, reason):
    dropped(reason, *((check_answer, chosen) if chosen != YES else (check_prompt, prompt)))


def test_messages_that_make_a_pair():
    check_prompt(TURN)
    check_answer(YES)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    check_prompt([*TURN, call, {"role": "tool", "content": "3"}])
    check_answer([call])


def test_template_arguments_of_a_row():
    assert row_template_kwargs({"chosen": []}) == {}
    assert row_template_kwargs({"tools": [], "chat_template_kwargs": None}) == {}
    assert row_template_kwargs({"tools": '[{"name": "add"}]'}) == {"tools": [{"name": "add"}]}
    row = {"tools": None, "chat_template_kwargs": {"enable_thinking": False, "of_another_row": None}}
    assert row_template_kwargs(row) == {"enable_thinking": False}
    assert row_template_kwargs({"chat_template_kwargs": '{"enable_thinking": false}'}) == {"enable_thinking": False}
    row = {"chat_template_kwargs": {"documents": [{"text": "a"}]}}
    assert row_template_kwargs(row) == row["chat_template_kwargs"]
    for blank in ("", " \n", "[]", "null", None):
        assert row_template_kwargs({"tools": blank, "chat_template_kwargs": blank}) == {}


@pytest.mark.parametrize(
    "row, detail",
    [
        ({"tools": "[{"}, "its tools are not valid JSON: "),
        ({"tools": {"name": "add"}}, "its tools are {'name': 'add'}"),
        ({"chat_template_kwargs": "thinking"}, "its chat_template_kwargs are not valid JSON: "),
        ({"chat_template_kwargs": '["a"]'}, "its chat_template_kwargs are ['a']"),
        ({"chat_template_kwargs": [{"key": 1}]}, "its chat_template_kwargs are [{'key': 1}]"),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "chat_template_kwargs has 'add_generation_prompt',",
        ),
        (
            {"chat_template_kwargs": '{"continue_final_message": true}'},
            "has 'continue_final_message', which a row cannot",
        ),
    ],
)
def test_template_arguments_that_cannot_be_given(row, detail):
    assert detail in dropped("template_arguments", row_template_kwargs, row)


# --- Keys of other rows -----------------------------------------------------------------------------------------------

CALL = {"name": "add", "arguments": {"a": 1, "b": None}}


def test_keys_of_other_rows_are_left_out():
    types = {
        "chosen": List(
            {"role": Value("string"), "content": Value("string"), "tool_calls": Json(), "name": Value("string")}
        ),
        "tools": List(
            {"name": Value("string"), "parameters": {"a": {"enum": List(Value("string"))}, "b": Value("string")}}
        ),
        "margin": Value("float64"),
    }
    row = {
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}, None],
        "tools": [{"name": "add", "parameters": {"a": {"enum": ["x", None]}, "b": None}}],
        "margin": None,
    }
    before = deepcopy(row)
    assert without_filled_keys(row, types) == {
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, None],  # JSON keeps its nulls
        "tools": [{"name": "add", "parameters": {"a": {"enum": ["x", None]}}}],
        "margin": None,
    }
    several = without_filled_keys(
        {"responses": [row["chosen"], row["chosen"][0]]}, {"responses": List(types["chosen"])}
    )
    kept = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert several == {"responses": [[kept, None], {**kept, "name": None}]}  # where the type is no struct, all is kept
    unknown = without_filled_keys(row, None)["chosen"][0]
    assert unknown["tool_calls"] == [{"name": "add", "arguments": {"a": 1}}]
    assert (
        without_filled_keys(row, {"chosen": List(Json()), "tools": Json(), "margin": Value("float64")}) == row == before
    )


# --- System messages --------------------------------------------------------------------------------------------------


def system(text):
    return {"role": "system", "content": text}


OPENING = [system("")]


@pytest.mark.parametrize(
    "prompt, kept, merged, without",
    [
        ([user("Hi")], [system(""), user("Hi")], [user("Hi")], [user("Hi")]),
        ([system("Be brief."), user("Hi")], None, [user("Be brief.\n\nHi")], [user("Hi")]),
        ([system(" \n"), user("Hi")], None, [user("Hi")], [user("Hi")]),
        ([system("a"), system("b "), user("Hi")], None, [user("a\n\nb\n\nHi")], [user("Hi")]),
        # A later one goes to the message that follows it, not to the first.
        (
            [system("a"), user("Hi"), assistant("So."), system("b"), user("On?")],
            None,
            [user("a\n\nHi"), assistant("So."), user("b\n\nOn?")],
            [user("Hi"), assistant("So."), user("On?")],
        ),
        # No user message follows the last: nothing is moved, and nothing lost.
        (
            [user("Hi"), system("a"), {"role": "tool", "content": "3"}],
            [system(""), user("Hi"), system("a"), {"role": "tool", "content": "3"}],
            [user("Hi"), system("a"), {"role": "tool", "content": "3"}],
            [user("Hi"), {"role": "tool", "content": "3"}],
        ),
    ],
)
def test_system_messages(prompt, kept, merged, without):
    before = [dict(message) for message in prompt]
    assert settle_system_messages(prompt, "keep", []) == prompt
    assert settle_system_messages(prompt, "keep", OPENING) == (kept or prompt)
    assert settle_system_messages(prompt, "merge", []) == merged
    assert settle_system_messages(prompt, "drop", []) == without
    assert prompt == before, "the row itself is not changed"
