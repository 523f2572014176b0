"""Values beside the types of settings: conversion of what was written, and the words for what is needed."""

import math
from dataclasses import Field
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from .errors import near


def narrow(hint: Any, field: Field) -> Any:
    """Returns the type with its choices: `Strategy` for `Strategy | str`, a `Literal` for choices in the metadata."""
    enums = [part for part in get_args(hint) if isinstance(part, type) and issubclass(part, Enum)]
    if enums:
        return enums[0]
    if choices := field.metadata.get("choices"):
        literal: Any = Literal[tuple(choices)]
        return literal | None if NoneType in get_args(hint) else literal
    return hint


def convert(value: Any, hint: Any, text: str | None = None) -> Any:
    """Returns the value (or `text`, as it was typed) converted to the type `hint`.

    Raises:
        ValueError: the value does not fit the type.
    """
    candidates = [value]
    if text is not None:
        candidates.append(text)  # --run_name 7 is text
    if value is False:
        candidates.append("no")  # YAML reads `eval_strategy: no` as false
    if isinstance(value, str):
        candidates.append([value])  # lora_target_modules: all-linear
    adapter = TypeAdapter(hint)
    for candidate in candidates:
        if isinstance(candidate, bool) and not takes_bool(hint):
            continue  # pydantic would read true as the number 1
        if isinstance(candidate, float) and math.isnan(candidate):
            continue
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise ValueError(value)


def takes_bool(hint: Any) -> bool:
    """Returns whether true and false are values of the type."""
    return hint in (bool, Any) or isinstance(hint, bool) or any(takes_bool(part) for part in get_args(hint))


_TYPE_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "null"}


def needed(hint: Any, value: Any) -> str:
    """Returns in words which values `hint` allows; if they are many, only those near `value`."""
    choices = list(get_args(hint)) if get_origin(hint) is Literal else []
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
    if len(choices) > 12:
        likely = near(str(value), choices, 3)
        return f"one of {len(choices)} names" + (f", such as {' or '.join(likely)}" if likely else "")
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    if hint is str and not isinstance(value, str | bool | list | dict | None):
        return "text; put it in quotes"
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    origin = get_origin(hint) or hint
    if origin in (list, dict):
        return "a list" if origin is list else "a mapping"
    return " or ".join(needed(part, value) for part in get_args(hint)) or getattr(hint, "__name__", str(hint))
