"""Conversations to texts: what of a chat template's output is the prompt, and what the answer that gets scored.

One idea carries the file. The prompt rendered with its generation header must be the beginning of prompt + answer
rendered together: then the prompt is what the model sees at inference, and the answer is the rest, up to the token that
ends the turn. Templates that break this are refused, rows that break it are dropped, no template is ever swapped.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import get_training_chat_template

from .drops import RowDropped
from .errors import SimPOError

Message = dict[str, Any]


@dataclass(frozen=True)
class TurnEnd:
    """How a chat template ends the last answer of a conversation.

    `token_id` is the id that ends an answer, None without one; `token` is its text where the template writes it, ""
    where it must be appended. `tail` is what the template writes behind it, which is no part of an answer.
    """

    token_id: int | None
    token: str
    tail: str


@dataclass(frozen=True)
class PairTexts:
    """One pair as texts; an answer's text goes on where the prompt's ends."""

    prompt: str
    chosen: str
    rejected: str


# --- Rows to prompt and answers ---------------------------------------------------------------------------------------


def explicit_prompt(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a row whose prompt may be implicit: three strings or three message lists.

    The prompt is implicit where the row has no `prompt` field, or has a string beside answers that are conversations
    (as UltraFeedback-binarized has): then both answers carry the whole conversation and what they share is the prompt.

    Raises:
        RowDropped: a field is missing or of the wrong type, or the answers are the same.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen is None or rejected is None or ("prompt" in row and row["prompt"] is None):
        raise RowDropped("missing_field")
    kinds = {type(chosen), type(rejected)}
    if kinds == {str}:
        if "prompt" not in row:
            return split_common_text(chosen, rejected)
        if isinstance(row["prompt"], str):
            return row["prompt"], chosen, rejected
    elif kinds == {list}:
        if isinstance(row.get("prompt", ""), str):
            return split_common_messages(chosen, rejected)
        if isinstance(row["prompt"], list):
            return row["prompt"], chosen, rejected
    raise RowDropped("wrong_type", ", ".join(f"{field}: {type(value).__name__}" for field, value in row.items()))


def split_common_messages(chosen: list[Message], rejected: list[Message]) -> tuple[list, list, list]:
    """The messages that two conversations begin with, and what follows them in each."""
    shared = 0
    for chosen_message, rejected_message in zip(chosen, rejected, strict=False):
        if chosen_message != rejected_message:
            break
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise RowDropped("identical_answers")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The text that two texts begin with, cut at the end of a word, and what follows it in each.

    The cut goes back to the last whitespace of the common beginning, so that no word is divided ("yes" and "yet" share
    no prompt "ye"). A space goes to the answers, as tokenizers write it in front of a word, a line break to the prompt.
    """
    if chosen == rejected:
        raise RowDropped("identical_answers")
    shared = len(os.path.commonprefix([chosen, rejected]))
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if shared and chosen[shared - 1] == " ":
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def check_messages(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    """Check that a prompt which waits for an answer is followed by two answers of one assistant message each.

    Raises:
        RowDropped: naming what is wrong.
    """
    for message in [*prompt, *chosen, *rejected]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowDropped("bad_message", _shorten(repr(message)))
        calls_tool = message.get("content") is None and bool(message.get("tool_calls"))
        if not isinstance(message.get("content"), str) and not calls_tool:
            raise RowDropped("bad_message", _shorten(repr(message)))
    if not prompt:
        raise RowDropped("no_prompt")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowDropped("prompt_end", f"the last role is {prompt[-1]['role']!r}")
    for answer in (chosen, rejected):
        roles = [message["role"] for message in answer]
        if roles != ["assistant"]:
            raise RowDropped("answer_messages", f"its roles are {roles}")
        if not (answer[0].get("content") or "").strip() and not answer[0].get("tool_calls"):
            raise RowDropped("empty_answer")


# --- The template -----------------------------------------------------------------------------------------------------

_QUESTION, _ANSWER = "question", "sentinel"
# Some templates of thinking models keep the prompt only in front of an answer that holds its thinking.
_PROBE_ANSWERS = (_ANSWER, f"<think>\nthought\n</think>\n\n{_ANSWER}")
# What a template raises on a conversation it was not made for: its own refusals, and mistakes in its expressions.
_TEMPLATE_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


def probe_template(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> TurnEnd:
    """Try the chat template on a dummy conversation: does it keep the prompt, and how does it end an answer?

    The end token is the special token that the template writes right behind an answer, both at the end of the
    conversation and before a next turn; where several stand in a row, the last that both have. This tells Phi's end of
    turn (`<|end|>`, scored) from the end of text behind it (cut off), and takes both tokens with which Command-R7B ends
    a turn. A template that writes none gets the tokenizer's EOS appended.

    Raises:
        SimPOError: there is no template, or it fails, loses the answer or does not keep the prompt.
    """
    if not tokenizer.chat_template:
        raise SimPOError(
            "The rows are conversations, but the tokenizer has no chat template. Use the tokenizer of a chat model, "
            "set tokenizer.chat_template, or write prompt, chosen and rejected as plain text."
        )
    try:
        probes = [_render_probe(tokenizer, answer, template_kwargs) for answer in _PROBE_ANSWERS]
    except _TEMPLATE_FAILURES as error:
        raise SimPOError(
            f"The chat template fails on a user message and an answer: {_shorten(repr(error))}. Correct "
            "tokenizer.chat_template, or write prompt, chosen and rejected as plain text."
        ) from error
    for prompt, full, _ in probes:
        if _QUESTION not in prompt or _ANSWER not in full:
            raise SimPOError(
                f"The chat template does not write the text of messages: it renders {_shorten(full)!r}. It may be a "
                "vision model's, which takes other contents. Use the tokenizer of a text model."
            )
    kept = next((probe for probe in probes if probe[1].startswith(probe[0])), None)
    if kept is None:
        raise SimPOError(_prefix_message(tokenizer, probes[0], template_kwargs))
    return _turn_end(tokenizer, kept[1].rpartition(_ANSWER)[2], kept[2].rpartition(_ANSWER)[2])


def _render_probe(
    tokenizer: PreTrainedTokenizerBase, answer: str, template_kwargs: Mapping[str, Any]
) -> tuple[str, str, str]:
    """The dummy prompt with generation header, the dummy conversation, and the conversation with a further turn."""
    question = {"role": "user", "content": _QUESTION}
    turn = [question, {"role": "assistant", "content": answer}]
    return (
        _apply(tokenizer, [question], True, template_kwargs),
        _apply(tokenizer, turn, False, template_kwargs),
        _apply(tokenizer, [*turn, question], False, template_kwargs),
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase, suffix: str, continued: str) -> TurnEnd:
    """The end of a turn, from what stands behind the last answer (`suffix`) and behind one with a next turn."""
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    added.update(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    # Whitespace can be an added token too (Gemma's "\n"), but ends no turn.
    present = sorted((token for token in added if token.strip() and token in suffix), key=len, reverse=True)
    if not present:
        return TurnEnd(tokenizer.eos_token_id, "", "")
    matches = list(re.finditer("|".join(map(re.escape, present)), suffix))
    run = matches[:1]
    for match in matches[1:]:
        if match.start() != run[-1].end():
            break
        run.append(match)
    end = next((match for match in reversed(run) if continued.startswith(suffix[: match.end()])), run[0])
    return TurnEnd(added[end.group()], end.group(), suffix[end.end() :])


def render_conversation(
    tokenizer: PreTrainedTokenizerBase,
    turn_end: TurnEnd,
    messages: tuple[list[Message], list[Message], list[Message]],
    template_kwargs: Mapping[str, Any],
) -> PairTexts:
    """The texts of a conversational pair: prompt with generation header, and both answers up to their end token.

    Args:
        turn_end: what `probe_template` found.
        messages: prompt, chosen and rejected.
        template_kwargs: further arguments of the template, `tools` among them.

    Raises:
        RowDropped: the template fails on this content, does not keep its prompt, or loses part of an answer.
    """
    prompt, *answers = messages
    try:
        prompt_text = _apply(tokenizer, prompt, True, template_kwargs)
        full_texts = [_apply(tokenizer, prompt + answer, False, template_kwargs) for answer in answers]
    except _TEMPLATE_FAILURES as error:
        raise RowDropped("template_error", _shorten(str(error))) from error
    texts = []
    for answer, full in zip(answers, full_texts, strict=True):
        if not full.startswith(prompt_text):
            raise RowDropped("template_prefix", _difference(prompt_text, full))
        text = full[len(prompt_text) :]
        if not text.endswith(turn_end.token + turn_end.tail):
            raise RowDropped("template_end", f"it ends in {text[-40:]!r}")
        text = text[: len(text) - len(turn_end.tail)]
        # Whitespace may change, and the generation header may hold the beginning ("<think>"), but nothing may be lost.
        if "".join((answer[0].get("content") or "").split()) not in "".join((prompt_text[-40:] + text).split()):
            raise RowDropped("template_content", f"it renders the answer as {_shorten(text)!r}")
        texts.append(text)
    return PairTexts(prompt_text, *texts)


def row_template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the template that a row brings: its `tools` (a list, or JSON text) and `chat_template_kwargs`."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise RowDropped("template_error", f"its tools are not valid JSON: {error}") from error
    # A column stores the union of all rows' keys; those that a row does not have come back as None.
    given = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    # `tools=[]` makes some templates write the boilerplate of tool use.
    return {"tools": tools, **given} if tools else given


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], generation_header: bool, kwargs: Mapping[str, Any]
) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_header, **kwargs)
    assert isinstance(text, str)
    return text


def _prefix_message(
    tokenizer: PreTrainedTokenizerBase, probe: tuple[str, str, str], template_kwargs: Mapping[str, Any]
) -> str:
    """What is wrong with a template that does not keep the prompt, and the remedies that were found to work."""
    remedies = []
    trained = _training_template(tokenizer)
    if trained and (kept := _kept_before(tokenizer, {**template_kwargs, "chat_template": trained})):
        remedies.append(f"set tokenizer.chat_template = trl.get_training_chat_template(tokenizer), good for {kept}")
    if kept := _kept_before(tokenizer, {**template_kwargs, "enable_thinking": False}):
        remedies.append(f"add a column chat_template_kwargs with {{'enable_thinking': false}}, good for {kept}")
    remedies.append(
        "set tokenizer.chat_template to one that writes the generation header, the answer and the end token behind the "
        "prompt, or write the rows as plain text in that form"
    )
    return (
        "The chat template renders a prompt with its generation header otherwise than the same prompt in front of an "
        f"answer, so a trained answer would not follow the prompt of inference: {_difference(*probe[:2])}. Either "
        + "; or ".join(remedies)
        + "."
    )


def _kept_before(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str:
    """In front of which answers a template keeps the prompt; "" for none."""
    kinds = ("all answers", "answers with their thinking in <think>...</think>")
    for answer, kind in zip(_PROBE_ANSWERS, kinds, strict=True):
        prompt, full, _ = _render_probe(tokenizer, answer, template_kwargs)
        if full.startswith(prompt):
            return kind
    return ""


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that trl has for training in place of this one; None if it has none."""
    try:
        return get_training_chat_template(tokenizer)
    except _TEMPLATE_FAILURES:  # ValueError: the template is none that trl knows
        return None


def _difference(prompt: str, full: str) -> str:
    """Both texts around their first difference."""
    at = len(os.path.commonprefix([prompt, full]))
    return f"prompt alone {prompt[max(0, at - 30) : at + 30]!r}, with an answer {full[max(0, at - 30) : at + 30]!r}"


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else text[:60] + " ... " + text[-55:]
