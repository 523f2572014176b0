"""Rows and chat templates that do not fit: what is dropped, and what is an error."""

import json

import pytest
from datasets import Dataset

from logs import warnings
from simpo_trainer import SimPOConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.sets import token_set
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_stream
from token_rows import ALTERNATING, END, SYSTEM, load, pair, tokenize
from toy import (
    CHATML,
    assistant,
    toy_pairs,
    toy_tokenizer,
    toy_tokenizer_without_template,
    user,
)

# --- Rows left out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, reason",
    [
        (pair("p", None), "missing_field"),
        (pair("p", " \n "), "empty_answer"),
        (pair("p", "x", ""), "empty_answer"),
        (pair("p", "x", " \n "), "empty_answer"),
        (pair("p", END), "empty_answer"),
        (pair("p", "same", "same"), "identical_answers"),
        (pair("p", "same", f"same{END}"), "identical_answers"),
        (pair("p", f"so{END} and on"), "end_token_inside"),
    ],
)
def test_texts_that_teach_nothing_are_dropped(row, reason):
    good = toy_pairs(2)
    tokenized, report = tokenize([good[0], row, row, good[1]], toy_tokenizer())
    assert tokenized["row"][:] == [0, 3]
    assert {name: (d.count, d.first_row) for name, d in report.dropped.items()} == {reason: (2, 1)}
    assert (report.rows_read, report.rows_kept) == (4, 2)


@pytest.mark.parametrize(
    "row, reason",
    [
        (pair([user("p")], None, [assistant("b")]), "missing_field"),
        (pair([user("p")], [assistant(" ")], [assistant("b")]), "empty_answer"),
        (pair([user("p")], [assistant("a")], [assistant("a")]), "identical_answers"),
        (pair([user("p")], [user("a")], [assistant("b")]), "answer_messages"),
        (pair([assistant("p")], [assistant("a")], [assistant("b")]), "prompt_end"),
        (pair([], [assistant("a")], [assistant("b")]), "no_prompt"),
        (pair([user("p")], [assistant(f"a{END}")], [assistant("b")]), "end_token_inside"),
        (pair([user("p")], [assistant(f"a{END}b")], [assistant("b")]), "end_token_inside"),
    ],
)
def test_conversations_that_teach_nothing_are_dropped(row, reason):
    good = toy_pairs(2, conversational=True)
    tokenized, report = tokenize([good[0], row, good[1]], toy_tokenizer())
    assert tokenized["row"][:] == [0, 2]
    assert {name: (d.count, d.first_row) for name, d in report.dropped.items()} == {reason: (1, 1)}


def test_rows_of_both_kinds_in_one_set(tmp_path):
    """A JSON Lines file may mix texts, conversations and neither; each row is taken for what it is."""
    rows = [*toy_pairs(2), *toy_pairs(2, conversational=True), pair("p", 3), pair("p", "a", [assistant("b")])]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = toy_tokenizer()
    tokenized, report = tokenize(load(tmp_path / "mixed.jsonl"), tokenizer)
    assert tokenized["row"][:] == [0, 1, 2, 3]
    assert (report.dropped["wrong_type"].count, report.dropped["wrong_type"].detail) == (
        2,
        "prompt: str, chosen: int, rejected: str",
    )
    assert tokenizer.decode(tokenized[1]["prompt_ids"]).startswith("<s>What is 1")
    assert tokenizer.decode(tokenized[2]["prompt_ids"]).startswith("<|im_start|>user\nWhat is 0")


def test_too_many_dropped_rows_are_an_error():
    bad = pair("p", "same", "same")
    assert len(tokenize([*toy_pairs(2), bad, bad], toy_tokenizer())[0]) == 2
    with pytest.raises(
        SimPOError, match=r"3 of 5 pairs cannot be .*\n  2 \(identical_answers, first row 2\): .*Remove"
    ):
        tokenize([*toy_pairs(2), bad, bad, pair("p", "")], toy_tokenizer())
    with pytest.raises(SimPOError, match="eval: 1 of 1 pairs cannot be trained on"):
        tokenize([bad], toy_tokenizer(), name="eval")


# --- Chat templates that take not everything --------------------------------------------------------------------------


def test_role_order_that_the_template_refuses():
    good = toy_pairs(3, conversational=True)
    twice = pair([user("Hi"), user("Ho")], [assistant("So.")], [assistant("No.")])
    tokenized, report = tokenize([*good, twice], toy_tokenizer(ALTERNATING))
    assert tokenized["row"][:] == [0, 1, 2]
    assert (report.dropped["template_error"].first_row, report.dropped["template_error"].detail) == (
        3,
        "roles must alternate",
    )
    with pytest.raises(
        SimPOError, match=r"refuses the conversation \(roles must alternate\).* user and assistant in turn"
    ):
        tokenize([twice], toy_tokenizer(ALTERNATING))


def test_system_messages_that_the_template_refuses():
    rows = [{**row, "prompt": [SYSTEM, *row["prompt"]]} for row in toy_pairs(2, conversational=True)]
    tokenizer = toy_tokenizer(ALTERNATING)
    with pytest.raises(SimPOError, match=r"\(no system role here\).* system_messages: merge .*system_messages: drop"):
        tokenize(rows, tokenizer)
    merged, _ = tokenize(rows, tokenizer, system_messages="merge")
    assert tokenizer.decode(merged[0]["prompt_ids"]).startswith("<|im_start|>user\nBe brief.\n\nWhat is 0")
    without, _ = tokenize(rows, tokenizer, system_messages="drop")
    assert without.to_list() == tokenize(toy_pairs(2, conversational=True), tokenizer)[0].to_list()


@pytest.mark.parametrize(
    "template, inserted",
    [
        (CHATML, True),
        (CHATML.replace("<|im_start|>", "<r>"), False),
        ("{# system #}" + CHATML.replace("<|im_start|>", "<r>"), True),
    ],
)
def test_empty_system_message_is_put_in_front(template, inserted):
    rows = toy_pairs(2, conversational=True)
    tokenizer = toy_tokenizer(template)
    tokenized, _ = tokenize(rows, tokenizer, auto_insert_empty_system_msg=True)
    for row, tokens in zip(rows, tokenized, strict=True):
        prompt = [{"role": "system", "content": ""}] * inserted + row["prompt"]
        assert tokens["prompt_ids"] == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    own = [{**row, "prompt": [SYSTEM, *row["prompt"]]} for row in rows]
    expected = tokenize(own, tokenizer)[0].to_list()
    assert tokenize(own, tokenizer, auto_insert_empty_system_msg=True)[0].to_list() == expected


def test_empty_system_message_that_the_template_refuses():
    with pytest.raises(SimPOError, match="no system role here.*Leave out auto_insert_empty_system_msg"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer(ALTERNATING), auto_insert_empty_system_msg=True)
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer_without_template(), auto_insert_empty_system_msg=True)


def test_second_rendering_is_said(caplog):
    tokenizer = toy_tokenizer(CHATML.replace("assistant\n{%", "assistant:\n{%"))
    rows = toy_pairs(3, conversational=True)
    tokenized, _ = tokenize(rows, tokenizer)
    for row, tokens in zip(rows, tokenized, strict=True):
        prompt_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert tokens["prompt_ids"] == prompt_ids
        assert tokenizer.decode(tokens["rejected_ids"]) == row["rejected"][0]["content"] + END
    assert warnings(caplog) == [
        "train: in 3 of 3 pairs the chat template does not write prompt + answer behind the prompt of inference (first "
        "row 0: prompt alone 'im_end|>\\n<|im_start|>assistant:\\n', with an answer "
        "'im_end|>\\n<|im_start|>assistant\\nThe sum is 0.<|im_end|>\\n'). There the answer's own text, and the "
        "token that ends it, are trained behind the generation header instead."
    ]
    caplog.clear()
    tokenize(rows, toy_tokenizer())
    assert not warnings(caplog)


def test_second_rendering_of_some_rows_only(caplog):
    """DeepSeek-R1's template cuts thinking off; rows whose answers hold none do not fit behind its header."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% else %}A:"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt "
        "%}A:<think>\n{% endif %}"
    )
    tokenizer, thinking = toy_tokenizer(template), "<think>\nwhy\n</think>\n\n"
    rows = [
        {**row, "chosen": [assistant(thinking + "So.")], "rejected": [assistant(thinking + "No.")]}
        for row in toy_pairs(2, conversational=True)
    ]
    tokenized, report = tokenize([toy_pairs(1, conversational=True)[0], *rows], tokenizer)
    assert tokenized["row"][:] == [1, 2] and report.dropped["template_prefix"].count == 1
    assert tokenizer.decode(tokenized[0]["prompt_ids"]).endswith("A:<think>\n")
    assert tokenizer.decode(tokenized[0]["chosen_ids"]) == f"why\n</think>\n\nSo.{END}"
    assert "train: in 2 of 2 pairs the chat template" in caplog.text and "(first row 1: " in caplog.text


def test_template_that_the_rows_break_is_explained():
    tokenizer = toy_tokenizer("{{ raise_exception('no second turn') if messages | length > 2 }}" + CHATML)
    with pytest.raises(SimPOError, match="The chat template fails"):
        tokenize(toy_pairs(2, conversational=True), tokenizer)
    tokenizer = toy_tokenizer("{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML)
    rows = [
        {**row, "prompt": [{"role": "system", "content": "s"}, *row["prompt"]]}
        for row in toy_pairs(2, conversational=True)
    ]
    with pytest.raises(SimPOError, match=r"2 \(template_error, first row 0\): the chat template refuses .*no system"):
        tokenize(rows, tokenizer)


def test_unusable_sets():
    with pytest.raises(SimPOError, match="train: the set has no rows"):
        tokenize(Dataset.from_dict({"chosen": [], "rejected": []}), toy_tokenizer())
    with pytest.raises(SimPOError, match="column 'rejected' missing"):
        tokenize([{"chosen": "a"}], toy_tokenizer())
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer_without_template())


def test_column_that_looks_like_the_prompt_is_pointed_out(caplog):
    rows = [{"question": "x", "chosen": f"The answer: {i}", "rejected": f"The answer: no {i}"} for i in range(3)]
    tokenize(rows, toy_tokenizer())
    assert "if column 'question' holds it, rename that to 'prompt'" in caplog.text


def test_texts_without_any_prompt_are_refused():
    """More than half of the rows without a prompt are a mistake, fewer are not; `prompt: ""` is meant so."""
    rows = [{"chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)]
    rows += [{"chosen": f"Q: yes {i}", "rejected": f"Q: no {i}"} for i in range(2)]
    settings = {"max_length": 512, "max_prompt_length": 256, "overlong": "truncate"}
    message = r"there is no column 'prompt', and in 3 of 5 rows .*`columns: {prompt: its name}`"
    with pytest.raises(SimPOError, match=message):
        tokenize(rows, toy_tokenizer())
    with pytest.raises(SimPOError, match=message):
        tokenize_stream(Dataset.from_list(rows).to_iterable_dataset(), toy_tokenizer(), RowSettings(**settings))
    assert len(tokenize(rows[1:], toy_tokenizer())[0]) == 4
    assert len(tokenize([{"prompt": "", **row} for row in rows], toy_tokenizer())[0]) == 5


def test_texts_trained_without_the_template_are_warned_of(caplog):
    tokenize(toy_pairs(2), toy_tokenizer_without_template())
    tokenize(toy_pairs(2, conversational=True), toy_tokenizer())
    assert "chat template" not in caplog.text
    tokenize(toy_pairs(2), toy_tokenizer())
    [warning] = warnings(caplog)
    assert "without the tokenizer's chat template" in warning and "`dataset_format: chat`" in warning


def test_rows_of_a_list_keep_their_keys():
    """Arguments of a tool call have no null keys from the calls of other rows."""
    calls = [{"type": "function", "function": {"name": "f", "arguments": {f"x{i}": "5"}}} for i in range(2)]
    rows = [
        {**row, "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
        for row, call in zip(toy_pairs(2, conversational=True), calls, strict=True)
    ]
    template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ message['tool_calls'] }}")
    assert template != CHATML
    args = SimPOConfig(output_dir="unused", max_length=1024, max_prompt_length=512, use_cpu=True, bf16=False)
    tokenizer = toy_tokenizer(template)
    found = token_set(rows, "train", tokenizer, args).rows
    for i, row in enumerate(found):
        assert f"'arguments': {{'x{i}': '5'}}" in tokenizer.decode(row["chosen_ids"])
