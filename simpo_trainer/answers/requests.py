"""A prompt to answer, and an answer: what engines take and give, and the hashes by which rows are found again."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from ..data.messages import Message

# Hex digits of a hash that keys a row; 128 bits.
_DIGITS = 32


def hash_of(*values: Any) -> str:
    """Returns a hash of values that JSON can hold; equal values have equal ones on any machine."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer.

    `template_kwargs` are arguments of the chat template, `tools` among them. `columns` are the other columns of its
    row, which its answers keep.
    """

    messages: list[Message]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Returns the hash of all that the model is given."""
        return hash_of(self.messages, dict(self.template_kwargs))

    @property
    def template_columns(self) -> dict[str, str]:
        """Returns the columns of a row that hold the arguments of the chat template.

        They are texts, so that objects of other rows do not lend these their keys.
        """
        kwargs = dict(self.template_kwargs)
        found = {"tools": kwargs.pop("tools", None), "chat_template_kwargs": kwargs}
        return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items() if value}


@dataclass(frozen=True)
class Answer:
    """The text of an answer, why it ended ("length": it was cut off), and its tokens, end token included.

    The number of tokens is None where an engine does not tell it.
    """

    text: str
    finish_reason: str
    tokens: int | None


# A prompt with its answers, one for each seed, in their order.
Answered: TypeAlias = tuple[Prompt, list[Answer]]


class Engine(Protocol):
    """Something that answers prompts."""

    # What can be relied on when the same command is repeated, for the data card.
    promise: str

    def answers(self, prompts: Sequence[Prompt], is_done: Sequence[bool]) -> Iterator[list[Answered]]:
        """Yields prompts with their answers, in groups that are kept whole.

        Args:
            prompts: all prompts of the file, sorted by their hashes.
            is_done: whether the answers of each are there already; those are not answered again.
        """
        ...
