"""Several sets to one: numbers of rows, one schema, a test set carved off."""

import json

import pytest
from datasets import Dataset, Features, Json, List, Value

from simpo_trainer.data.mixing import carve_test, concatenate, rows_of_fraction, rows_of_shares
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import assistant, toy_pairs, toy_tokenizer, user

TEXT = toy_pairs(4)
CHAT = toy_pairs(4, conversational=True)


def mixed(*sets, streaming=False):
    named = {f"set {number}": Dataset.from_list(rows) for number, rows in enumerate(sets, start=1)}
    if streaming:
        named = {name: rows.to_iterable_dataset() for name, rows in named.items()}
    return list(concatenate(named))


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, fraction, count",
    [(100, 0.29, 29), (100, 1, 100), (100, 1.0, 100), (100, 0, 0), (7, 0.5, 3), (1000, 0.001, 1), (10**6, 1e-5, 10)],
)
def test_fractions_are_exact_and_rounded_down(length, fraction, count):
    assert rows_of_fraction(length, fraction) == count


@pytest.mark.parametrize(
    "lengths, shares, counts",
    [
        ([100, 100], [0.5, 0.5], [100, 100]),
        ([100, 100], [0.25, 0.75], [33, 100]),
        ([10, 1000], [0.1, 0.1], [10, 10]),
        ([29, 1000], [0.29, 0.71], [29, 71]),
        ([30, 70, 5], [0.3, 0.7, 0], [30, 70, 0]),
    ],
)
def test_shares_repeat_no_row(lengths, shares, counts):
    assert rows_of_shares(lengths, shares) == counts


@pytest.mark.parametrize("size, count", [(0.29, 29), (0.001, 1), (7, 7), (1, 1), (99, 99)])
def test_carved_test_set(size, count):
    rows = Dataset.from_dict({"chosen": list(range(100))})
    train, test = carve_test(rows, size, seed=3)
    assert (len(train), len(test)) == (100 - count, count)
    assert sorted(train["chosen"][:] + test["chosen"][:]) == list(range(100))
    for part in (train, test):
        assert part["chosen"][:] == sorted(part["chosen"][:])  # the order of the source


def test_carved_test_set_depends_on_the_seed_alone():
    rows = Dataset.from_dict({"chosen": list(range(1000))})
    first, again, other = (carve_test(rows, 0.05, seed)[1]["chosen"][:] for seed in (3, 3, 4))
    assert first == again
    assert len(set(first) & set(other)) < 20
    assert max(first) - min(first) > 500


@pytest.mark.parametrize("size", [4, 5, 0.99])
def test_carving_leaves_something_to_train_on(size):
    with pytest.raises(SimPOError, match=f"test_split_size {size} takes . of 4 pairs, which leaves none"):
        carve_test(Dataset.from_list(TEXT), size, seed=3)


# --- One schema -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_sets_follow_each_other(streaming):
    assert mixed(TEXT[:2], TEXT[2:], TEXT[:1], streaming=streaming) == [*TEXT, TEXT[0]]
    assert mixed(CHAT[2:], CHAT[:2], streaming=streaming) == [*CHAT[2:], *CHAT[:2]]


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_with_other_keys_keep_their_own(streaming):
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    other = [{**CHAT[3], "chosen": [called]}]
    assert mixed(CHAT[:3], other, streaming=streaming) == [*CHAT[:3], *other]
    assert mixed(other, CHAT[:3], streaming=streaming) == [*other, *CHAT[:3]]


@pytest.mark.parametrize("streaming", [False, True])
def test_implicit_prompts_beside_explicit_ones_are_made_explicit(streaming):
    whole = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in CHAT]
    repeated = [{"prompt": "text", **row} for row in whole]
    assert mixed(CHAT[:2], whole[2:3], repeated[3:], streaming=streaming) == CHAT
    assert [dict(row) for row in mixed(whole[:1], repeated[1:], streaming=streaming)] == CHAT
    texts = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in TEXT]
    found = mixed(TEXT[:2], texts[2:], streaming=streaming)
    assert found[:2] == TEXT[:2]
    for row, expected in zip(found[2:], TEXT[2:], strict=True):
        assert row["prompt"] + row["chosen"] == expected["prompt"] + expected["chosen"]
        assert row["prompt"].strip()


def test_rows_without_a_prompt_to_make_explicit_are_dropped_by_their_reasons():
    same = [user("a"), assistant("b")]
    bad = [
        {"chosen": same, "rejected": same},
        {"chosen": None, "rejected": same},
        {"chosen": same, "rejected": [user("x"), assistant("b")]},
    ]
    dataset = Dataset.from_list(mixed(CHAT, bad))
    _, report = tokenize_preferences(
        dataset, toy_tokenizer(), RowSettings(max_length=512, max_prompt_length=256, overlong="truncate")
    )
    assert {reason: dropped.first_row for reason, dropped in report.dropped.items()} == {
        "identical_answers": 4,
        "missing_field": 5,
        "no_prompt": 6,
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_that_differ_become_text(streaming):
    tools = [[{"name": "f", "properties": {name: {"type": "int"}}}] for name in "ab"]
    rows = [{**row, "tools": tool} for row, tool in zip(CHAT, tools, strict=False)]
    found = mixed(rows[:1], rows[1:], CHAT[2:3], [{**CHAT[3], "tools": "[]"}], streaming=streaming)
    texts = [json.dumps(tool) for tool in tools]
    assert [row["tools"] for row in found] == [*texts, None, "[]"]
    assert mixed(rows[:1], rows[:1], streaming=streaming) == [rows[0], rows[0]]


@pytest.mark.parametrize("streaming", [False, True])
def test_whole_numbers_and_template_arguments_mix(streaming):
    rows = [
        {**TEXT[0], "margin": 1, "chat_template_kwargs": {"a": True}},
        {**TEXT[1], "margin": 0.5, "chat_template_kwargs": {"b": 2}},
    ]
    found = mixed(rows[:1], rows[1:], streaming=streaming)
    assert [row["margin"] for row in found] == [1.0, 0.5]
    assert [row["chat_template_kwargs"] for row in found] == [{"a": True}, {"b": 2}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "first, second, message",
    [
        (TEXT, CHAT, "Column 'chosen' is text in set 1 and a list of messages in set 2; .* must agree. Write both"),
        (
            [{**row, "prompt": [user("a")]} for row in CHAT],
            [{**row, "prompt": 5} for row in CHAT],
            "Column 'prompt' is a list of messages in set 1 and a number in set 2",
        ),
        (
            [{**row, "margin": 1.0} for row in TEXT],
            [{**row, "margin": "1"} for row in TEXT],
            "Column 'margin' is a number in set 1 and text in set 2",
        ),
        ([{**row, "margin": 1.0} for row in TEXT], TEXT, "set 1 has a column 'margin' and set 2 has none"),
        (TEXT, [{**row, "margin": 1.0} for row in TEXT], "set 2 has a column 'margin' and set 1 has none"),
    ],
)
def test_sets_that_clash_are_both_named(first, second, message, streaming):
    with pytest.raises(SimPOError, match=message):
        mixed(first, second, streaming=streaming)


def test_rows_of_several_types_clash_with_text():
    rows = Dataset.from_list(TEXT).cast(Features(dict.fromkeys(TEXT[0], Json())))
    with pytest.raises(SimPOError, match="'chosen' is text in a and of several types in b"):
        concatenate({"a": Dataset.from_list(TEXT), "b": rows})


def test_both_kinds_of_arrow_text_mix():
    large = Dataset.from_list(TEXT[2:]).cast(Features(dict.fromkeys(TEXT[0], Value("large_string"))))
    assert list(concatenate({"a": Dataset.from_list(TEXT[:2]), "b": large})) == TEXT


def test_lists_without_a_message_mix_with_others():
    empty = [{**CHAT[0], "prompt": []}]
    assert mixed(empty, CHAT[:1]) == [*empty, *CHAT[:1]]
    assert concatenate({"a": Dataset.from_list(empty), "b": Dataset.from_list(CHAT)}).features["prompt"] == List(Json())
