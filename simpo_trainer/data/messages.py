"""Rows to messages: which part of a row is the prompt and which the answers, and what becomes of system messages."""

import json
import os
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from datasets import LargeList, List
from transformers import PreTrainedTokenizerBase

from .drops import RowDropped, caught
from .fields import MEDIA_NOTE, TIE_NOTE
from .media import media_part
from .ranking import answer_values

Message = dict[str, Any]

# What `apply_chat_template` is given beside a row's arguments; a row that sets one would change what is scored.
_SET_ELSEWHERE = {"messages", *signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {
    "tools",
    "documents",
}


def without_filled_keys(row: Mapping[str, Any], features: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row with the keys that are its own: a struct column gives the objects of every row the keys of all, as None.

    Objects of a JSON column keep their nulls. A message keeps its content, None or not.

    Args:
        features: the types of the columns; None where a stream does not know them: all objects are taken for structs.
    """
    own = {}
    for column, value in row.items():
        own[column] = _without_filled_keys(value, features.get(column) if features else None)
        if column in ("prompt", "chosen", "rejected", "responses"):
            _put_content_back(value, own[column])
    return own


def _put_content_back(given: Any, own: Any) -> None:
    """Give messages their content again, None or not: one message, a list, or the lists of several answers."""
    if isinstance(given, list):
        for inside, kept in zip(given, own, strict=True):
            _put_content_back(inside, kept)
    elif isinstance(given, dict) and "content" in given:
        own["content"] = given["content"]


def _without_filled_keys(value: Any, feature: Any) -> Any:
    if isinstance(value, dict) and (feature is None or isinstance(feature, dict)):
        kept = {key: inside for key, inside in value.items() if inside is not None}
        return {key: _without_filled_keys(inside, feature and feature.get(key)) for key, inside in kept.items()}
    if isinstance(value, list) and (feature is None or isinstance(feature, List | LargeList)):
        return [_without_filled_keys(inside, feature and feature.feature) for inside in value]
    return value


def explicit_prompt(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a row whose prompt may be implicit: three strings or three message lists.

    The prompt is implicit where the row has no `prompt` field, or has a string beside answers that are conversations
    (as UltraFeedback-binarized has): then both answers carry the whole conversation and what they share is the prompt.
    Beside answers of one assistant message each, a string is what the user says.

    Raises:
        RowDropped: a field is missing or of the wrong type, or the answers are the same.
    """
    chosen, rejected = (_in_a_list(row[side]) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None or ("prompt" in row and row["prompt"] is None):
        raise RowDropped("missing_field")
    for value in (row.get("prompt"), chosen, rejected):
        _check_read(value)
    kinds = {type(chosen), type(rejected)}
    if kinds == {str}:
        if "prompt" not in row:
            return split_common_text(chosen, rejected)
        if isinstance(row["prompt"], str):
            return row["prompt"], chosen, rejected
    elif kinds == {list}:
        if isinstance(row.get("prompt", ""), str):
            if row.get("prompt", "").strip() and _only_answers(chosen) and _only_answers(rejected):
                return [{"role": "user", "content": row["prompt"]}], chosen, rejected
            return split_common_messages(chosen, rejected)
        if isinstance(row["prompt"], list):
            return row["prompt"], chosen, rejected
    raise RowDropped("wrong_type", ", ".join(f"{field}: {type(value).__name__}" for field, value in row.items()))


def ranked_answers(row: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Prompt and answers of a ranked row: a string and strings, or a message list and message lists.

    An answer that is a single message becomes a list. One that cannot be used is a `RowDropped` in its place. Beside
    answers that are messages, a string is what the user says.

    Raises:
        RowDropped: the row has no prompt, no answers or no ranking of them, or all of another kind than its prompt.
    """
    prompt = row["prompt"]
    if prompt is None:
        raise RowDropped("missing_field")
    _check_read(prompt)
    answers = [_one_answer(*both) for both in zip(row["responses"], answer_values(row), strict=True)]
    kinds = {type(answer) for answer in answers} - {RowDropped}
    if isinstance(prompt, str) and kinds == {list} and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    if type(prompt) not in (str, list) or (kinds and type(prompt) not in kinds):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RowDropped("wrong_type", f"prompt: {type(prompt).__name__}, responses: {names}")
    return prompt, [_of_kind(type(prompt), answer) for answer in answers]


def _one_answer(answer: Any, value: float | None) -> Any:
    """An answer of a ranked row as text or a message list, or why it cannot be used."""
    if answer is None:
        return RowDropped("missing_field")
    if value is None:
        return RowDropped("bad_score")
    if unread := caught(_check_read, answer):
        return unread
    return _in_a_list(answer)


def _in_a_list(answer: Any) -> Any:
    """An answer as it is, or a single message in a list."""
    return [answer] if isinstance(answer, dict) else answer


def _check_read(value: Any) -> None:
    """Check that a value is not a list of the text that `read_written` could not read as messages."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        raise RowDropped("unread_messages", shorten(value[0]))


def _of_kind(kind: type, answer: Any) -> Any:
    return answer if isinstance(answer, kind | RowDropped) else RowDropped("wrong_type", type(answer).__name__)


def _only_answers(messages: list[Message]) -> bool:
    return len(messages) == 1 and isinstance(messages[0], dict) and messages[0].get("role") == "assistant"


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


def check_notes(row: Mapping[str, Any]) -> None:
    """Check that a row has nothing in a column of media, and no tie of its answers, both of which were noted.

    Raises:
        RowDropped: naming the column, or the value that tells the tie.
    """
    if told := row.get(TIE_NOTE):
        raise RowDropped("tie", f"told by {told}")
    if column := row.get(MEDIA_NOTE):
        raise RowDropped("media", f"in the column {column!r}")


def check_prompt(prompt: list[Message]) -> None:
    """Check that a prompt is made of messages, the last of which waits for an answer.

    Raises:
        RowDropped: naming what is wrong.
    """
    _check_messages(prompt)
    if not prompt:
        raise RowDropped("no_prompt")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowDropped("prompt_end", f"the last role is {prompt[-1]['role']!r}")


def check_answer(answer: list[Message]) -> None:
    """Check that an answer is one assistant message that says something.

    Raises:
        RowDropped: naming what is wrong.
    """
    _check_messages(answer)
    roles = [message["role"] for message in answer]
    if roles != ["assistant"]:
        raise RowDropped("answer_messages", f"its roles are {roles}")
    if not (answer[0].get("content") or "").strip() and not answer[0].get("tool_calls"):
        raise RowDropped("empty_answer")


def _check_messages(messages: list[Message]) -> None:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowDropped("bad_message", shorten(repr(message)))
        if part := media_part(message.get("content")):
            raise RowDropped("media", f"a content part of the type {part!r}")
        calls_tool = message.get("content") is None and bool(message.get("tool_calls"))
        if not isinstance(message.get("content"), str) and not calls_tool:
            raise RowDropped("bad_message", shorten(repr(message)))


def settle_system_messages(
    messages: list[Message], mode: Literal["keep", "merge", "drop"], opening: list[Message]
) -> list[Message]:
    """A prompt with its system messages kept, put into the user message that follows each, or left out.

    Args:
        messages: a prompt that `check_messages` accepts.
        mode: "merge" puts a system message's text in front of the next user message, two line breaks between. Where no
            user message follows, the prompt stays as it is, for the template to accept or refuse.
        opening: with "keep", what is put in front of a prompt that does not begin with a system message.
    """
    if mode == "drop":
        return [message for message in messages if message["role"] != "system"]
    if mode == "keep":
        return messages if messages[0]["role"] == "system" else [*opening, *messages]
    merged: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            texts = [*(text.strip() for text in waiting if text.strip()), message["content"]]
            merged.append({**message, "content": "\n\n".join(texts)})
            waiting = []
        else:
            merged.append(message)
    return messages if waiting else merged


def row_template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the template that a row brings: `tools` and `chat_template_kwargs`, each of them also as JSON text.

    Raises:
        RowDropped: one of them is not what it should be, or sets what is not the row's to set.
    """
    tools = _given(row, "tools", list)
    # A column stores the union of all rows' keys; those that a row does not have come back as None.
    own = _given(row, "chat_template_kwargs", dict) or {}
    given = {key: value for key, value in own.items() if value is not None}
    if taken := sorted(_SET_ELSEWHERE & given.keys()):
        raise RowDropped("template_arguments", f"chat_template_kwargs has {taken[0]!r}, which a row cannot set")
    # `tools=[]` makes some templates write the boilerplate of tool use.
    return {"tools": tools, **given} if tools else given


def _given(row: Mapping[str, Any], column: str, kind: type) -> Any:
    """Returns the content of a row's column of template arguments; None if it is empty or blank."""
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except json.JSONDecodeError as error:
            raise RowDropped("template_arguments", f"its {column} are not valid JSON: {error}") from error
    if value and not isinstance(value, kind):
        raise RowDropped("template_arguments", f"its {column} are {shorten(repr(value))}")
    return value or None


def shorten(text: str) -> str:
    """A text for a message: a long one without its middle."""
    return text if len(text) <= 120 else text[:60] + " ... " + text[-55:]
