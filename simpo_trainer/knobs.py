"""Each setting is defined once: its dataclass field holds its default, its help and its range."""

from collections.abc import Callable
from dataclasses import field, fields
from functools import cache
from inspect import get_annotations
from typing import Any, Literal, get_args, get_origin, get_type_hints


def knob(
    default: Any,
    text: str,
    valid: Callable[[Any], bool] | None = None,
    needed: str = "",
    *,
    changes_result: bool = True,
) -> Any:
    """Returns a field of a dataclass of settings.

    Args:
        default: the value if none is given; None stands for "unset".
        text: the help.
        valid: returns whether a value other than None is allowed; without it, every value is.
        needed: the allowed range and the change to make, as text that follows "NAME is VALUE; ".
        changes_result: whether another value gives other trained weights. A run that goes on with another value of
            such a setting is another run.
    """
    metadata = {"help": text, "valid": valid, "needed": needed, "changes_result": changes_result}
    return field(default=default, metadata=metadata)


def harmless_knobs(owner: type) -> set[str]:
    """Returns the names of the settings that do not change the trained weights; a field that is no knob may do so."""
    return {each.name for each in fields(owner) if not each.metadata.get("changes_result", True)}


def knob_problems(owner: type, settings: Any) -> list[str]:
    """Returns a sentence for each value that is outside its range or not one of its field's choices.

    Args:
        owner: the dataclass whose own fields are checked, not those of its bases; a `Literal` lists the choices.
        settings: an object with the fields of `owner` as attributes.
    """
    problems, own = [], get_annotations(owner)
    for each in (each for each in fields(owner) if each.name in own):
        value, valid, choices = getattr(settings, each.name), each.metadata.get("valid"), _choices(owner).get(each.name)
        if choices and value not in choices:
            problems.append(f"{each.name} is {value!r}; it must be {_listed(choices)}.")
        if valid and value is not None and not valid(value):
            problems.append(f"{each.name} is {value}; {each.metadata['needed']}")
    return problems


@cache
def _choices(owner: type) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(owner)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def _listed(choices: tuple[Any, ...]) -> str:
    *first, last = map(repr, choices)
    return f"{', '.join(first)} or {last}"
