"""Turns of a conversation to messages, as ShareGPT writes them, as chat templates do, or either of them as text."""

import ast
import json
import re
from typing import Any

from .messages import Message
from .recognition import listed

# ShareGPT: LLaMA-Factory's `from` and `value`, and what a chat template calls these roles.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
# Roles that make objects turns of a conversation, and not data that has a role or a sender.
_SPEAKERS = {*_ROLES, "developer", "function", "ipython", "model"}
_START = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:""")
# Characters of a Python list that are parsed at most: its parser takes far more memory than JSON's.
_LONGEST_LITERAL = 1_000_000


def message_of(turn: Any) -> Message:
    """A `from`/`value` turn as a message; one that cannot be read has no role or no content, and its row is dropped."""
    if isinstance(turn, dict) and turn.get("from") is None and "role" in turn:
        # A struct gives each message the keys of all, and templates take a key that is there for one that is meant.
        return {key: value for key, value in turn.items() if value is not None or key in ("role", "content")}
    sender, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    message: Message = {"role": _ROLES.get(str(sender)), "content": value}
    if sender != "function_call":
        return message
    calls = parsed(value)
    functions = [
        {"name": call["name"], "arguments": parsed(call.get("arguments", {}))}
        for call in listed(calls)
        if isinstance(call, dict) and isinstance(call.get("name"), str)
    ]
    if not functions or len(functions) < len(listed(calls)):
        return message | {"content": None}
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return message | {"content": "", "tool_calls": tool_calls}


def parsed(value: Any) -> Any:
    """Returns the value of JSON text, and anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return value


def written_messages(text: str) -> list[Message] | None:
    """Returns the messages that a text is, as JSON or as Python writes it; None where it is anything else, or more."""
    if not text.lstrip()[:1] in ("[", "{") or not any(key in text for key in ("role", "from")):
        return None
    value = parsed(text)
    if isinstance(value, str) and _START.match(text) and len(text) <= _LONGEST_LITERAL:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    turns = listed(value)
    return [message_of(turn) for turn in turns] if turns and all(map(_is_turn, turns)) else None


def looks_written(text: str) -> bool:
    """Returns whether a text begins as messages written as text do, readable or not."""
    return _START.match(text) is not None


def speaker(turn: Any) -> str | None:
    """Returns the role of a turn as chat templates call it; None for what is no turn."""
    if not isinstance(turn, dict):
        return None
    given = turn.get("role") or turn.get("from")
    return _ROLES.get(given, given) if isinstance(given, str) else None


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    says = value.keys() & ({"content", "tool_calls"} if "role" in value else {"value"})
    return bool(says) and (value.get("role") or value.get("from")) in _SPEAKERS
