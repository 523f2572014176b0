"""The chat-template side: which part of a rendered conversation is prompt, which is answer, and what is refused."""

from importlib.resources import files
from itertools import product

import pytest

from simpo_trainer.drops import REASONS, RowDropped
from simpo_trainer.errors import SimPOError
from simpo_trainer.templates import (
    TurnEnd,
    check_messages,
    explicit_prompt,
    probe_template,
    render_conversation,
    row_template_kwargs,
    split_common_text,
)
from toy import assistant, toy_tokenizer, toy_tokenizer_without_template, user

THINKING = "<think>\nwhy\n</think>\n\nYes."


def template(answer: str, *, header: str = "A:", end: str = "") -> str:
    """A template that writes an assistant's turn as `answer` (an expression's inside) and `end` after the last turn."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% else %}"
        + answer
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + header
        + "{% else %}"
        + end
        + "{% endif %}"
    )


def shipped(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def dropped(reason: str, function, *args) -> str:
    with pytest.raises(RowDropped) as caught:
        function(*args)
    assert caught.value.reason == reason
    assert reason in REASONS
    return caught.value.detail


# --- How a turn ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, end, token, tail",
    [
        ("A:{{ m.content }}<e>", "", "<e>", ""),
        ("A:{{ m.content }}<e>\n", "", "<e>", "\n"),
        ("A:{{ m.content }} <e>", "", "<e>", ""),
        # Phi-3 and Phi-4-mini: the end of the turn, then the end of the text, with or without a line break between.
        ("A:{{ m.content }}<e>\n", "<eos>", "<e>", "\n<eos>"),
        ("A:{{ m.content }}<e>", "<eos>", "<e>", "<eos>"),
        ("A:{{ m.content }}<e>\n<r>", "", "<e>", "\n<r>"),
        # Command-R7B: two tokens end every turn.
        ("A:{{ m.content }}<r><e>", "", "<e>", ""),
        # gpt-oss: another token ends the last turn than the others.
        ("A:{{ m.content }}{{ '<eos>' if loop.last else '<e>' }}", "", "<eos>", ""),
        # GLM-4: no token behind the last turn.
        ("A:{{ m.content }}", "", "", ""),
        ("A:{{ m.content }}\n\n", "", "", ""),
    ],
)
def test_end_token_of_a_template(answer, end, token, tail):
    tokenizer = toy_tokenizer(template(answer, end=end), eos="<eos>", special_tokens=("<e>", "<r>"))
    expected_id = tokenizer.convert_tokens_to_ids(token or "<eos>")
    assert probe_template(tokenizer, {}) == TurnEnd(expected_id, token, tail)


@pytest.mark.parametrize(
    "name, token, tail",
    [
        ("llama3", "<|eot_id|>", ""),
        ("qwen3", "<|im_end|>", "\n"),
        ("gemma", "<end_of_turn>", "\n"),
        ("phi3", "<|end|>", "\n<|endoftext|>"),
        ("cohere2", "<|END_OF_TURN_TOKEN|>", ""),
        ("gptoss", "<|return|>", ""),
        ("glm4moe", "", ""),
    ],
)
def test_end_token_of_known_templates(name, token, tail):
    special = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>")
    tokenizer = toy_tokenizer(shipped(name), eos="<|endoftext|>", special_tokens=(*special, "<|return|>", "<|user|>"))
    assert probe_template(tokenizer, {}) == TurnEnd(
        tokenizer.convert_tokens_to_ids(token or "<|endoftext|>"), token, tail
    )


def test_whitespace_among_the_added_tokens_ends_no_turn():
    tokenizer = toy_tokenizer(template("A:{{ m.content }}\n<e>\n"), special_tokens=("<e>", "\n"))
    assert probe_template(tokenizer, {}).token == "<e>"


def test_no_end_token_anywhere():
    tokenizer = toy_tokenizer(template("A:{{ m.content }}"), eos=None, special_tokens=())
    assert probe_template(tokenizer, {}) == TurnEnd(None, "", "")


# --- Templates that are refused ---------------------------------------------------------------------------------------


def test_missing_template():
    with pytest.raises(SimPOError, match="conversations, but the tokenizer has no chat template. Use the tokenizer of"):
        probe_template(toy_tokenizer_without_template(), {})


def test_template_that_does_not_keep_the_prompt_is_shown():
    tokenizer = toy_tokenizer(template("B:{{ m.content }}<e>"), special_tokens=("<e>",))
    with pytest.raises(SimPOError) as caught:
        probe_template(tokenizer, {})
    assert "prompt alone 'U:questionA:', with an answer 'U:questionB:sentinel<e>'" in str(caught.value)
    assert "generation header, the answer and the end token" in str(caught.value)
    assert "enable_thinking" not in str(caught.value) and "trl." not in str(caught.value)


def test_remedies_are_named_where_they_work():
    with pytest.raises(SimPOError, match=r"trl.get_training_chat_template\(tokenizer\), good for answers with their"):
        probe_template(toy_tokenizer(shipped("deepseek_r1_distill")), {})
    switched = template("A:{{ m.content }}", header="A:{{ '' if enable_thinking is false else '<think>hm' }}")
    with pytest.raises(SimPOError, match="chat_template_kwargs with {'enable_thinking': false}, good for all answers"):
        probe_template(toy_tokenizer(switched), {})
    assert probe_template(toy_tokenizer(switched), {"enable_thinking": False})


def test_template_that_keeps_the_prompt_only_before_thinking_is_left_to_the_rows():
    tokenizer = toy_tokenizer(shipped("nemotron_3_nano"))
    turn_end = probe_template(tokenizer, {})
    prompt, good, bad = [user("Why?")], [assistant(THINKING)], [assistant("Yes.")]
    texts = render_conversation(tokenizer, turn_end, (prompt, good, good), {})
    assert texts.chosen == "why\n</think>\n\nYes.<|im_end|>"
    detail = dropped("template_prefix", render_conversation, tokenizer, turn_end, (prompt, good, bad), {})
    assert "<think>\\n'" in detail and "<think></think>Yes." in detail


def test_template_that_fails_is_quoted():
    with pytest.raises(SimPOError, match="The chat template fails .*out of order"):
        probe_template(toy_tokenizer("{{ raise_exception('out of order') }}"), {})


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_template_of_a_vision_model_is_refused(name):
    with pytest.raises(SimPOError, match="does not write the text of messages"):
        probe_template(toy_tokenizer(shipped(name)), {})


# --- Rendering --------------------------------------------------------------------------------------------------------


def render(tokenizer, prompt, chosen, rejected="other", **template_kwargs):
    turn_end = probe_template(tokenizer, template_kwargs)
    messages = (prompt, [assistant(chosen)], [assistant(rejected)])
    return render_conversation(tokenizer, turn_end, messages, template_kwargs)


def test_texts_are_the_parts_of_the_rendered_conversation():
    tokenizer = toy_tokenizer()
    prompt = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("How?")]
    texts = render(tokenizer, prompt, "So.", "No.")
    assert texts.prompt == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    for text, content in ((texts.chosen, "So."), (texts.rejected, "No.")):
        assert text == f"{content}<|im_end|>"
        assert tokenizer.apply_chat_template([*prompt, assistant(content)], tokenize=False) == f"{texts.prompt}{text}\n"


def test_end_token_that_must_be_appended_is_not_in_the_text():
    texts = render(toy_tokenizer(template("A:{{ m.content }}\n", header="A:")), [user("Hi")], "So.")
    assert (texts.prompt, texts.chosen) == ("U:HiA:", "So.\n")


def test_thinking_that_begins_in_the_header_is_not_lost():
    tokenizer = toy_tokenizer(shipped("qwen3_5_think"))
    texts = render(tokenizer, [user("Hi")], THINKING)
    assert texts.prompt.endswith("<think>\n") and texts.chosen == "why\n</think>\n\nYes.<|im_end|>"


def test_template_arguments_reach_the_template():
    told = "{{ tools[0].name if tools else 'none' }}{{ mood }}" + template("A:{{ m.content }}", header="A:")
    texts = render(toy_tokenizer(told), [user("Hi")], "So.", tools=[{"name": "add"}], mood="!")
    assert texts.prompt == "add!U:HiA:"


def test_rows_that_the_template_cannot_take():
    tokenizer = toy_tokenizer(shipped("gemma"), special_tokens=("<end_of_turn>",))
    turn_end = probe_template(tokenizer, {})
    answers = [assistant("So.")], [assistant("No.")]
    prompt = [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert "System role" in dropped("template_error", render_conversation, tokenizer, turn_end, (prompt, *answers), {})


def test_answer_that_is_cut_by_the_template():
    tokenizer = toy_tokenizer(template("A:{{ m.content.split('</think>')[-1] }}<|im_end|>"))
    turn_end = probe_template(tokenizer, {})
    messages = ([user("Hi")], [assistant("So.")], [assistant("So</think>No.")])
    assert "'No.<|im_end|>'" in dropped("template_content", render_conversation, tokenizer, turn_end, messages, {})


def test_answer_that_the_template_ends_otherwise():
    tokenizer = toy_tokenizer(template("A:{{ m.content }}{{ '?' if 'odd' in m.content else '<|im_end|>' }}"))
    turn_end = probe_template(tokenizer, {})
    messages = ([user("Hi")], [assistant("So.")], [assistant("odd")])
    assert "'odd?'" in dropped("template_end", render_conversation, tokenizer, turn_end, messages, {})


def test_template_arguments_of_a_row():
    assert row_template_kwargs({"chosen": []}) == {}
    assert row_template_kwargs({"tools": [], "chat_template_kwargs": None}) == {}
    assert row_template_kwargs({"tools": '[{"name": "add"}]'}) == {"tools": [{"name": "add"}]}
    row = {"tools": None, "chat_template_kwargs": {"enable_thinking": False, "of_another_row": None}}
    assert row_template_kwargs(row) == {"enable_thinking": False}
    assert "not valid JSON" in dropped("template_error", row_template_kwargs, {"tools": "[{"})


# --- Rows to prompt and answers ---------------------------------------------------------------------------------------

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
    dropped(reason, check_messages, prompt, chosen, NO)
    if prompt == TURN:
        dropped(reason, check_messages, prompt, NO, chosen)


def test_messages_that_make_a_pair():
    check_messages(TURN, YES, NO)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    check_messages([*TURN, call, {"role": "tool", "content": "3"}], YES, [call])
