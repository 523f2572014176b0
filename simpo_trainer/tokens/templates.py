"""Conversations to texts: splits a chat template's output into the prompt and the answer that gets scored.

The prompt is always what the model sees at inference: the conversation rendered with its generation header. Where that
is the beginning of prompt + answer rendered together (the prefix rule), the answer is the rest, up to the token that
ends the turn. Where it is not, the answer's own text is written behind the header instead (the second rendering), if it
fits there. What fits neither way is refused or dropped; no template is ever swapped.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..data.drops import RowDropped, caught
from ..data.messages import Message, check_answer, shorten
from ..errors import SimPOError


@dataclass(frozen=True)
class TurnEnd:
    """The end that a chat template gives to the last answer of a conversation.

    `token_id` is the id that ends an answer, None without one; `token` is its text where the template writes it, ""
    where it must be appended. `tail` is the text that the template writes behind it, which is no part of an answer.
    """

    token_id: int | None
    token: str
    tail: str


@dataclass(frozen=True)
class RowTexts:
    """A prompt and its answers as texts; an answer's text goes on where the prompt's ends.

    An answer that cannot be used is replaced by the reason. `header` is the end of the prompt, behind the text of its
    last message, or "" where nobody asked for it. `second` is the reason why an answer got the second rendering, and
    `ignored` names the parts of the prompt that the template does not write; each is "" where there are none.
    """

    prompt: str
    answers: tuple[str | RowDropped, ...]
    header: str = ""
    second: str = ""
    ignored: str = ""
    conversational: bool = False


@dataclass(frozen=True)
class _Template:
    """The tokenizer's chat template with the arguments of one row."""

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, Any]

    def render(self, messages: list[Message], generation_header: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_header, **self.kwargs
        )
        assert isinstance(text, str)
        return text

    def renders_as(self, text: str, messages: list[Message], generation_header: bool) -> bool:
        """Returns whether the template renders these messages as that text, without failing on them."""
        try:
            return self.render(messages, generation_header) == text
        except TEMPLATE_FAILURES:
            return False


@dataclass(frozen=True)
class _Prompt:
    """A prompt's messages, and their text with generation header."""

    messages: list[Message]
    text: str


_QUESTION, _ANSWER = "question", "sentinel"
# Keys of a message that hold part of what it says; others (an id, a score) are the template's to read or not.
_SPOKEN = ("tool_calls", "function_call", "tool_plan", "reasoning_content", "reasoning", "thinking")
# Some templates of thinking models keep the prompt only in front of an answer that holds its thinking.
_PROBE_ANSWERS = {
    "all answers": _ANSWER,
    "answers with their thinking in <think>...</think>": f"<think>\nthought\n</think>\n\n{_ANSWER}",
}
# What a template raises on a conversation it was not made for: its own refusals, and mistakes in its expressions.
TEMPLATE_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
# The tags around a thinking part: <think>, <thinking>, [THINK], <seed:think> and the like.
_THINK_TAG = re.compile(r"([<\[])(/?)([\w:|]*th(?:ink|ought)[\w|]*)([>\]])", re.IGNORECASE)


# --- The probe --------------------------------------------------------------------------------------------------------


def probe_template(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], opening: list[Message] | None = None
) -> TurnEnd:
    """Find out by a dummy conversation whether the template's answers follow its prompt, and how they end.

    The end token is the special token that the template writes right behind an answer, both at the end of the
    conversation and before a next turn; where several stand in a row, the last that both have. This tells Phi's end of
    turn (`<|end|>`, scored) from the end of text behind it (cut off), and takes both tokens with which Command-R7B ends
    a turn. A template that writes none gets the tokenizer's EOS appended.

    Args:
        template_kwargs: further arguments of the template.
        opening: messages that are put in front of every conversation.

    Raises:
        SimPOError: there is no template, or it fails, loses the answer, ends it with a token that the tokenizer does
            not have, or neither rendering is sound with it.
    """
    if not tokenizer.chat_template:
        raise SimPOError(
            "The rows are conversations, but the tokenizer has no chat template. Use the tokenizer of a chat model, "
            "set chat_template, or write prompt, chosen and rejected as plain text."
        )
    opening = opening or []
    template, failures = _Template(tokenizer, template_kwargs), []
    try:
        for answer in _PROBE_ANSWERS.values():
            try:
                return _probe(template, opening, answer)
            except RowDropped as dropped:
                failures.append(dropped)
    except SimPOError:
        raise
    except TEMPLATE_FAILURES as error:
        raise SimPOError(_failure_message(error, opening)) from error
    raise SimPOError(_prefix_message(template, opening, failures[0].detail))


def _probe(template: _Template, opening: list[Message], answer: str) -> TurnEnd:
    """The end of a turn, found on a dummy conversation with this answer.

    Raises:
        RowDropped: neither rendering is sound in front of this answer.
    """
    question = {"role": "user", "content": _QUESTION}
    turn = [*opening, question, {"role": "assistant", "content": answer}]
    prompt = _Prompt(turn[:-1], template.render(turn[:-1], True))
    full, continued = template.render(turn, False), template.render([*turn, question], False)
    if _QUESTION not in prompt.text or _ANSWER not in full:
        raise SimPOError(
            f"The chat template does not write the text of messages: it renders {shorten(full)!r}. It may be a "
            "vision model's, which takes other contents. Use the tokenizer of a text model."
        )
    turn_end = _turn_end(template.tokenizer, full.rpartition(_ANSWER)[2], continued.rpartition(_ANSWER)[2])
    _answer_text(template, turn_end, prompt, turn[-1])
    return turn_end


def _turn_end(tokenizer: PreTrainedTokenizerBase, suffix: str, continued: str) -> TurnEnd:
    """The end of a turn, from what stands behind the last answer (`suffix`) and behind one with a next turn."""
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    added.update(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    # Whitespace can be an added token too (Gemma's "\n"), but ends no turn.
    present = sorted((token for token in added if token.strip() and token in suffix), key=len, reverse=True)
    if not present:
        _check_blank(tokenizer, suffix.strip())
        return TurnEnd(tokenizer.eos_token_id, "", "")
    matches = list(re.finditer("|".join(map(re.escape, present)), suffix))
    run = matches[:1]
    for match in matches[1:]:
        if match.start() != run[-1].end():
            break
        run.append(match)
    end = next((match for match in reversed(run) if continued.startswith(suffix[: match.end()])), run[0])
    return TurnEnd(added[end.group()], end.group(), suffix[end.end() :])


def _check_blank(tokenizer: PreTrainedTokenizerBase, end: str) -> None:
    """Refuses a text behind answers that is no token: its letters would be trained as the end of every answer."""
    if not end or tokenizer.convert_tokens_to_ids(end) not in (None, tokenizer.unk_token_id):
        return
    raise SimPOError(
        f"The chat template ends a turn with {shorten(end)!r}, for which this tokenizer has no token; it would be "
        "trained letter by letter. Set chat_template to one that ends turns with a token of this tokenizer, or add the "
        "token to the tokenizer and the model."
    )


def _failure_message(error: Exception, opening: list[Message]) -> str:
    conversation = (
        "an empty system message, a user message and an answer" if opening else "a user message and an answer"
    )
    if opening:
        change = "Leave out auto_insert_empty_system_msg"
    elif "system" in str(error).lower():
        change = "If it is about system messages, see the key system_messages; or correct the template (chat_template)"
    else:
        change = "Correct the template, name another one with chat_template"
    return (
        f"The chat template fails on {conversation}: {shorten(repr(error))}. {change}, or write prompt, chosen and "
        "rejected as plain text."
    )


def _prefix_message(template: _Template, opening: list[Message], detail: str) -> str:
    """Returns an error about a template without a sound rendering, with the remedies that were found to work."""
    remedies = []
    for thinking in (False, True):
        switched = _Template(template.tokenizer, {**template.kwargs, "enable_thinking": thinking})
        if kind := _good_for(switched, opening):
            value = str(thinking).lower()
            remedies.append(f"add a column chat_template_kwargs with {{'enable_thinking': {value}}}, good for {kind}")
    remedies.append(
        "set chat_template to one that writes the generation header, the answer and the end token behind the prompt, "
        "or write the rows as plain text in that form"
    )
    return (
        "The chat template renders a prompt with its generation header otherwise than the same prompt in front of an "
        f"answer, and an answer does not fit behind the header either: {detail}. Either {'; or '.join(remedies)}."
    )


def _good_for(template: _Template, opening: list[Message]) -> str:
    """With which answers a template can be used; "" for none."""
    for kind, answer in _PROBE_ANSWERS.items():
        try:
            _probe(template, opening, answer)
        except (RowDropped, SimPOError, *TEMPLATE_FAILURES):
            continue
        return kind
    return ""


# --- Rendering --------------------------------------------------------------------------------------------------------


def render_conversation(
    tokenizer: PreTrainedTokenizerBase,
    turn_end: TurnEnd,
    messages: Sequence[list[Message] | RowDropped],
    template_kwargs: Mapping[str, Any],
    *,
    with_header: bool = False,
) -> RowTexts:
    """The texts of a conversational row: prompt with generation header, and its answers up to their end token.

    An answer is replaced by a reason where it is no assistant message, the template fails on it or
    loses part of it, or neither rendering is sound.

    Args:
        turn_end: what `probe_template` found.
        messages: the prompt, then its answers; one that cannot be used stays as it is.
        template_kwargs: further arguments of the template, `tools` among them.
        with_header: whether it is wanted where the prompt's last message ends.

    Raises:
        RowDropped: the template fails on the prompt.
    """
    prompt_messages, *answers = messages
    template = _Template(tokenizer, template_kwargs)
    assert isinstance(prompt_messages, list)
    try:
        prompt = _Prompt(prompt_messages, template.render(prompt_messages, True))
        header = _header(template, prompt) if with_header else ""
        ignored = _ignored(template, prompt)
    except TEMPLATE_FAILURES as error:
        raise _refused(error) from error
    found = [caught(_checked_answer_text, template, turn_end, prompt, answer) for answer in answers]
    texts = tuple(answer if isinstance(answer, RowDropped) else answer[0] for answer in found)
    reasons = (answer[1] for answer in found if not isinstance(answer, RowDropped))
    return RowTexts(prompt.text, texts, header, next(filter(None, reasons), ""), ignored, True)


def _refused(error: Exception) -> RowDropped:
    return RowDropped("template_error", shorten(str(error)))


def _checked_answer_text(
    template: _Template, turn_end: TurnEnd, prompt: _Prompt, answer: list[Message] | RowDropped
) -> tuple[str, str]:
    """:func:`_answer_text` of an answer that may be anything.

    Raises:
        RowDropped: it cannot be used.
    """
    if isinstance(answer, RowDropped):
        raise answer
    check_answer(answer)
    try:
        return _answer_text(template, turn_end, prompt, answer[0])
    except TEMPLATE_FAILURES as error:
        raise _refused(error) from error


def _answer_text(template: _Template, turn_end: TurnEnd, prompt: _Prompt, answer: Message) -> tuple[str, str]:
    """The text of an answer behind its prompt, and why it got the second rendering; "" where it did not.

    Raises:
        RowDropped: the template loses part of the answer, or neither rendering is sound.
    """
    full = template.render([*prompt.messages, answer], False)
    text, content = full[len(prompt.text) :], answer.get("content") or ""
    if not full.startswith(prompt.text):
        why = _difference(prompt.text, full)
        return _second_rendering(template, turn_end, prompt, answer, why), why
    if _thinking_pushed_out(text, content):
        why = f"it closes the thinking part of its header in front of the answer's own: {shorten(text)!r}"
        return _second_rendering(template, turn_end, prompt, answer, why), why
    begins = _THINK_TAG.match(text.lstrip())
    if begins and not begins[2] and _ends_thinking(_header(template, prompt)):
        raise RowDropped(
            "template_prefix", f"the header ends the thinking part with which the answer begins: {shorten(text)!r}"
        )
    for key in _SPOKEN:
        if answer.get(key) and template.renders_as(full, [*prompt.messages, _without(answer, key)], False):
            raise RowDropped("template_content", f"it does not write the answer's {key!r}")
    if not text.endswith(turn_end.token + turn_end.tail):
        raise RowDropped("template_end", f"it ends in {text[-40:]!r}")
    text = text[: len(text) - len(turn_end.tail)]
    # Whitespace may change, and the generation header may hold the beginning ("<think>"), but nothing may be lost.
    if "".join(content.split()) not in "".join((prompt.text[-40:] + text).split()):
        raise RowDropped("template_content", f"it renders the answer as {shorten(text)!r}")
    return text, ""


def _thinking_pushed_out(text: str, content: str) -> bool:
    """Returns whether a template closes its header's thinking part at once, though the answer has one of its own."""
    closed = _THINK_TAG.match(text.lstrip())
    return closed is not None and closed[2] == "/" and closed[0] in content


def _second_rendering(template: _Template, turn_end: TurnEnd, prompt: _Prompt, answer: Message, why: str) -> str:
    """The answer's own text behind the generation header, then the end token that the template writes elsewhere.

    Raises:
        RowDropped: the answer does not fit there, or is more than text.
    """
    if turn_end.token_id is None:
        raise RowDropped("template_prefix", f"no token is known that ends an answer; {why}")
    if further := [key for key, value in answer.items() if value and key not in ("role", "content")]:
        raise RowDropped("template_prefix", f"only the template can write the answer's {further[0]!r}; {why}")
    if prompt.text == template.render(prompt.messages, False):
        raise RowDropped("template_prefix", f"the template writes no generation header; {why}")
    return _behind_header(_header(template, prompt), answer["content"], why) + turn_end.token


def _header(template: _Template, prompt: _Prompt) -> str:
    """Returns the part of a prompt behind its last message's text; a thinking tag inside a message is no header."""
    try:
        marked = template.render([*prompt.messages[:-1], {**prompt.messages[-1], "content": _ANSWER}], True)
    except TEMPLATE_FAILURES:  # it asks more of a content than to be text
        marked = ""
    _, found, header = marked.rpartition(_ANSWER)
    if found and prompt.text.endswith(header):
        return header
    bare = template.render(prompt.messages, False)
    return prompt.text[len(os.path.commonprefix([prompt.text, bare])) :]


def _ignored(template: _Template, prompt: _Prompt) -> str:
    """Returns the names of the parts that the template leaves out of a prompt: tools, tool calls of its messages."""
    ignored = []
    if template.kwargs.get("tools"):
        toolless = _Template(template.tokenizer, _without(template.kwargs, "tools"))
        if toolless.renders_as(prompt.text, prompt.messages, True):
            ignored.append("the tools")
    if any(message.get("tool_calls") for message in prompt.messages):
        if template.renders_as(prompt.text, [_without(message, "tool_calls") for message in prompt.messages], True):
            ignored.append("the tool calls of the prompt")
    return " and ".join(ignored)


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _ends_thinking(header: str) -> bool:
    """Returns whether the last thinking tag of a generation header is a closing one."""
    tags = list(_THINK_TAG.finditer(header))
    return bool(tags) and tags[-1][2] == "/"


def _behind_header(header: str, content: str, why: str) -> str:
    """The part of an answer that goes on from the generation header: what thinking the header opens is not repeated.

    Raises:
        RowDropped: the header begins a thinking part that the answer lacks, or ends one that the answer has.
    """
    tag = next(reversed(list(_THINK_TAG.finditer(header))), None)
    if tag is None:
        return content
    begins = _THINK_TAG.match(content.lstrip())
    if tag[2] == "/":
        if begins and not begins[2]:
            raise RowDropped(
                "template_prefix", f"the header ends the thinking part with which the answer begins; {why}"
            )
        return content
    opening, closing = header[tag.start() :], f"{tag[1]}/{tag[3]}{tag[4]}"
    if closing not in content:
        raise RowDropped("template_prefix", f"the header begins a thinking part that the answer lacks; {why}")
    if content.lstrip().startswith(opening.strip()):
        content = content.lstrip()[len(opening.strip()) :]
        return content.lstrip() if opening[-1].isspace() else content
    if tag[0] in content:
        raise RowDropped("template_prefix", f"the answer begins its thinking otherwise than the header; {why}")
    return content


def _difference(prompt: str, full: str) -> str:
    """Both texts around their first difference."""
    at = len(os.path.commonprefix([prompt, full]))
    return f"prompt alone {prompt[max(0, at - 30) : at + 30]!r}, with an answer {full[max(0, at - 30) : at + 30]!r}"
