"""The chat-template side: which part of a rendered conversation is prompt, which is answer, and what is refused."""

from importlib.resources import files

import pytest

from simpo_trainer.data.drops import REASONS, RowDropped
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.templates import TurnEnd, probe_template, render_conversation
from toy import CHATML, assistant, toy_tokenizer, toy_tokenizer_without_template, user

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


def rendered(*args):
    """The texts of a row, all of whose answers can be used."""
    texts = render_conversation(*args)
    for answer in texts.answers:
        if isinstance(answer, RowDropped):
            raise answer
    return texts


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


def test_end_that_is_a_word_of_the_vocabulary():
    tokenizer = toy_tokenizer(template("A:{{ m.content }}the"), eos="<eos>")
    assert probe_template(tokenizer, {}) == TurnEnd(tokenizer.eos_token_id, "", "")


# --- Templates that are refused ---------------------------------------------------------------------------------------


def test_missing_template():
    with pytest.raises(SimPOError, match="conversations, but the tokenizer has no chat template. Use the tokenizer of"):
        probe_template(toy_tokenizer_without_template(), {})


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|eot_id|>\n"])
def test_end_for_which_the_tokenizer_has_no_token(end):
    with pytest.raises(
        SimPOError,
        match=r"ends a turn with '<\|eot_id\|>', for which this tokenizer has no token.* Set chat_template to .*",
    ):
        probe_template(toy_tokenizer(template("A:{{ m.content }}" + end)), {})
    tokenizer = toy_tokenizer(template("A:{{ m.content }}" + end), special_tokens=("<|eot_id|>",))
    assert probe_template(tokenizer, {}).token == "<|eot_id|>"


def test_template_with_which_no_rendering_is_sound_is_shown():
    tokenizer = toy_tokenizer(template("B:{{ m.content }}<e>", header="A:<think>hm"), special_tokens=("<e>",))
    with pytest.raises(SimPOError) as caught:
        probe_template(tokenizer, {})
    assert "the header begins a thinking part that the answer lacks" in str(caught.value)
    assert "prompt alone 'U:questionA:<think>hm', with an answer 'U:questionB:sentinel<e>'" in str(caught.value)
    assert "set chat_template to one that writes the generation header" in str(caught.value)
    assert "enable_thinking" not in str(caught.value)


@pytest.mark.parametrize("needed", [False, True])
def test_remedies_are_named_where_they_work(needed):
    word = str(needed).lower()
    header = "A:{{ '' if enable_thinking is " + word + " else '<think>hm' }}"
    switched = toy_tokenizer(template("A:{{ m.content }}", header=header))
    with pytest.raises(
        SimPOError, match=f"chat_template_kwargs with {{'enable_thinking': {word}}}, good for all"
    ) as it:
        probe_template(switched, {})
    assert str(it.value).count("'enable_thinking'") == 1
    assert probe_template(switched, {"enable_thinking": needed})
    header = "A:{{ '<think>' if enable_thinking is " + word + " else '<think>hm' }}"
    with pytest.raises(SimPOError, match="good for answers with their thinking in <think>...</think>;"):
        probe_template(toy_tokenizer(template("A:{{ m.content }}", header=header)), {})


def test_template_that_keeps_the_prompt_only_before_thinking_is_left_to_the_rows():
    tokenizer = toy_tokenizer(shipped("nemotron_3_nano"))
    turn_end = probe_template(tokenizer, {})
    prompt, good, bad = [user("Why?")], [assistant(THINKING)], [assistant("Yes.")]
    texts = render_conversation(tokenizer, turn_end, (prompt, good, good), {})
    assert texts.answers[0] == "why\n</think>\n\nYes.<|im_end|>"
    detail = dropped("template_prefix", rendered, tokenizer, turn_end, (prompt, good, bad), {})
    assert "the header begins a thinking part that the answer lacks" in detail
    assert "<think>\\n'" in detail and "<think></think>Yes." in detail


def test_template_that_fails_is_quoted():
    with pytest.raises(SimPOError, match="fails on a user message and an answer: .*out of order.*chat_template, or"):
        probe_template(toy_tokenizer("{{ raise_exception('out of order') }}"), {})
    with pytest.raises(SimPOError, match="no System role.*see the key system_messages"):
        probe_template(toy_tokenizer("{{ raise_exception('no System role') }}"), {})


def test_template_that_refuses_what_is_put_in_front_of_all_conversations():
    opening = [{"role": "system", "content": ""}]
    with pytest.raises(
        SimPOError,
        match="fails on an empty system message, a user .*System role not.*Leave out auto_insert_empty_system",
    ):
        probe_template(toy_tokenizer(shipped("gemma")), {}, opening)
    assert probe_template(toy_tokenizer(), {}, opening) == probe_template(toy_tokenizer(), {})


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
    for text, content in ((texts.answers[0], "So."), (texts.answers[1], "No.")):
        assert text == f"{content}<|im_end|>"
        assert tokenizer.apply_chat_template([*prompt, assistant(content)], tokenize=False) == f"{texts.prompt}{text}\n"


def test_end_token_that_must_be_appended_is_not_in_the_text():
    texts = render(toy_tokenizer(template("A:{{ m.content }}\n", header="A:")), [user("Hi")], "So.")
    assert (texts.prompt, texts.answers[0]) == ("U:HiA:", "So.\n")


def test_thinking_that_begins_in_the_header_is_not_lost():
    tokenizer = toy_tokenizer(shipped("qwen3_5_think"))
    texts = render(tokenizer, [user("Hi")], THINKING)
    assert texts.prompt.endswith("<think>\n") and texts.answers[0] == "why\n</think>\n\nYes.<|im_end|>"


# The prompt has another header than the conversation: only the answer's own text can be put behind it.
OTHER = "B:{{ m.content }}<|im_end|>"


@pytest.mark.parametrize(
    "header, content, text",
    [
        ("A:", "So.", "So."),
        ("A:", THINKING, THINKING),
        ("A:</think>", "So.", "So."),
        # Thinking that the header begins is not written twice, however the answer spaces it.
        ("A:<think>\n", THINKING, "why\n</think>\n\nYes."),
        ("A:<think>\n", "\n<think>why</think>Yes.", "why</think>Yes."),
        ("A:<think>", THINKING, "\nwhy\n</think>\n\nYes."),
        ("A:<think>\nwhy", THINKING, "\n</think>\n\nYes."),
        # An answer cut off behind the header, as a model gives it.
        ("A:<think>\n", "why\n</think>\n\nYes.", "why\n</think>\n\nYes."),
        ("A:[THINK]", "[THINK]why[/THINK]Yes.", "why[/THINK]Yes."),
        ("A:<seed:think>", "<seed:think>why</seed:think>Yes.", "why</seed:think>Yes."),
    ],
)
def test_second_rendering_puts_the_answer_behind_the_header(header, content, text):
    tokenizer = toy_tokenizer(template(OTHER, header=header))
    turn_end = TurnEnd(tokenizer.eos_token_id, "<|im_end|>", "")
    # Tags in a message are no header.
    prompt = [user("What is <think> and </think> and [THINK]?")]
    texts = render_conversation(tokenizer, turn_end, (prompt, [assistant(content)], [assistant(content + "!")]), {})
    assert texts.prompt == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert (texts.answers[0], texts.answers[1]) == (f"{text}<|im_end|>", f"{text}!<|im_end|>")
    assert "with an answer" in texts.second


@pytest.mark.parametrize(
    "header, answer, why",
    [
        ("A:<think>\n", assistant("So."), "begins a thinking part that the answer lacks"),
        ("A:<think>\n", assistant("<think>\ncut off"), "begins a thinking part that the answer lacks"),
        ("A:<think>\nHm", assistant(THINKING), "begins its thinking otherwise than the header"),
        ("A:[THINK]", assistant(THINKING), "begins a thinking part that the answer lacks"),
        ("A:<think></think>", assistant(THINKING), "ends the thinking part with which the answer begins"),
        (
            "A:",
            {**assistant("So."), "reasoning_content": "why"},
            "only the template can write the answer's 'reasoning_c",
        ),
        (
            "A:",
            {**assistant(None), "tool_calls": [{"name": "add"}]},
            "only the template can write the answer's 'tool_c",
        ),
    ],
)
def test_answers_that_do_not_fit_behind_the_header(header, answer, why):
    tokenizer = toy_tokenizer(template(OTHER, header=header))
    turn_end = TurnEnd(tokenizer.eos_token_id, "<|im_end|>", "")
    messages = ([user("Hi")], [answer], [assistant("No.")])
    assert why in dropped("template_prefix", rendered, tokenizer, turn_end, messages, {})


@pytest.mark.parametrize("header", ["A:", "A:<think>\n"])
def test_template_that_needs_the_second_rendering_is_taken(header):
    tokenizer = toy_tokenizer(template(OTHER + "!", header=header))
    assert probe_template(tokenizer, {}) == TurnEnd(tokenizer.eos_token_id, "<|im_end|>", "!")


def test_second_rendering_needs_a_header_and_an_end():
    numbered = toy_tokenizer("{{ messages | length }}" + template("A:{{ m.content }}", header=""))
    with pytest.raises(SimPOError, match="the template writes no generation header; prompt alone '1U:question'"):
        probe_template(numbered, {})
    endless = toy_tokenizer(template("B:{{ m.content }}"), eos=None, special_tokens=())
    with pytest.raises(SimPOError, match="no token is known that ends an answer"):
        probe_template(endless, {})


def test_each_answer_gets_the_rendering_that_it_needs():
    """Qwen3.8's template closes the header's thinking part at once, whatever the answer begins with."""
    tokenizer = toy_tokenizer(shipped("qwen3_8"))
    texts = render(tokenizer, [user("Hi")], THINKING, "Yes.")
    assert texts.prompt.endswith("assistant\n<think>\n")
    assert texts.answers[0] == "why\n</think>\n\nYes.<|im_end|>"
    assert texts.answers[1] == "\n</think>\n\nYes.<|im_end|>"
    assert "it closes the thinking part" in texts.second
    assert render(tokenizer, [user("Hi")], "Yes.", THINKING).second == texts.second
    assert render(tokenizer, [user("Hi")], "Yes.").second == ""


def test_header_of_a_prompt_where_asked_for():
    tokenizer, answers = toy_tokenizer(), ([assistant("So.")], [assistant("No.")])
    turn_end = probe_template(tokenizer, {})
    texts = render_conversation(tokenizer, turn_end, ([user("Hi")], *answers), {}, with_header=True)
    assert texts.prompt == "<|im_start|>user\nHi" + texts.header
    assert texts.header == "<|im_end|>\n<|im_start|>assistant\n"
    assert render_conversation(tokenizer, turn_end, ([user("Hi")], *answers), {}).header == ""


@pytest.mark.parametrize(
    "written, header",
    [
        ("[INST] {{ m.content }} [/INST]", " [/INST]"),
        # The text is nowhere to be found, or has a say in what follows it: what the template adds for the answer.
        ("{{ m.content | length }}", ""),
        ("{{ m.content }}{{ '?' if m.content == 'sentinel' else '!' }}", {"sentinel": "?"}),
    ],
)
@pytest.mark.parametrize("text", ["T", "INST]", " spaces\n", "sentinel"])
def test_header_begins_where_the_last_message_ends(written, header, text):
    """Also where the message's text stands in the header too, and where add_generation_prompt changes nothing."""
    template = "{% for m in messages %}{% if m.role == 'user' %}" + written + "{% else %}{{ m.content }}</s>{% endif %}"
    tokenizer = toy_tokenizer(template + "{% endfor %}", eos="</s>")
    messages = [user(text)], [assistant("So.")], [assistant("No.")]
    texts = render_conversation(tokenizer, TurnEnd(tokenizer.eos_token_id, "</s>", ""), messages, {}, with_header=True)
    assert texts.header == (header if isinstance(header, str) else header.get(text, ""))


def test_header_of_a_template_that_asks_more_of_a_message_than_text():
    refusal = "{{ raise_exception('no JSON') if m.role == 'tool' and '{' not in m.content }}"
    strict = "{% for m in messages %}" + refusal + "{% endfor %}"
    tokenizer = toy_tokenizer(strict + CHATML)
    messages = [user("Hi"), {"role": "tool", "content": "{}"}], [assistant("So.")], [assistant("No.")]
    texts = render_conversation(tokenizer, probe_template(tokenizer, {}), messages, {}, with_header=True)
    assert texts.header == "<|im_start|>assistant\n"


def test_thinking_behind_a_header_that_ends_it_is_dropped():
    """Qwen3.8's template writes it there: the prompt ends a thinking part, and the answer begins another."""
    tokenizer = toy_tokenizer(shipped("qwen3_8"))
    turn_end, off = probe_template(tokenizer, {}), {"enable_thinking": False}
    messages = [user("What is <think>?")], [assistant("Yes.")], [assistant(THINKING)]
    detail = dropped("template_prefix", rendered, tokenizer, turn_end, messages, off)
    assert "the header ends the thinking part with which the answer begins: '<think>\\nwhy" in detail
    assert render_conversation(tokenizer, turn_end, messages, {})
    plain = [user("What is <think>?")], [assistant("Yes.")], [assistant("No <think> no.")]
    assert render_conversation(tokenizer, turn_end, plain, off).answers[0] == "Yes.<|im_end|>"


def test_template_arguments_reach_the_template():
    told = "{{ tools[0].name if tools else 'none' }}{{ mood }}" + template("A:{{ m.content }}", header="A:")
    texts = render(toy_tokenizer(told), [user("Hi")], "So.", tools=[{"name": "add"}], mood="!")
    assert texts.prompt == "add!U:HiA:"


def test_rows_that_the_template_cannot_take():
    tokenizer = toy_tokenizer(shipped("gemma"), special_tokens=("<end_of_turn>",))
    turn_end = probe_template(tokenizer, {})
    answers = [assistant("So.")], [assistant("No.")]
    prompt = [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert "System role" in dropped("template_error", rendered, tokenizer, turn_end, (prompt, *answers), {})


def test_answer_that_is_cut_by_the_template():
    tokenizer = toy_tokenizer(template("A:{{ m.content.split('</think>')[-1] }}<|im_end|>"))
    turn_end = probe_template(tokenizer, {})
    messages = ([user("Hi")], [assistant("So.")], [assistant("So</think>No.")])
    assert "'No.<|im_end|>'" in dropped("template_content", rendered, tokenizer, turn_end, messages, {})


def test_answer_that_the_template_ends_otherwise():
    tokenizer = toy_tokenizer(template("A:{{ m.content }}{{ '?' if 'odd' in m.content else '<|im_end|>' }}"))
    turn_end = probe_template(tokenizer, {})
    messages = ([user("Hi")], [assistant("So.")], [assistant("odd")])
    assert "'odd?'" in dropped("template_end", rendered, tokenizer, turn_end, messages, {})
