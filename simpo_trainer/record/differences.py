"""Settings of a run that are not those of before, as values and as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Differences = dict[str, tuple[Any, Any]]


def differences(sealed: Mapping[str, Any], own: Mapping[str, Any]) -> Differences:
    """Returns old and new value of each part of an identity that differs; one that either side lacks does not.

    Args:
        sealed: the identity in a seal, maybe of another version of this package.
        own: the identity of this run.
    """
    return {name: (sealed[name], own[name]) for name in own if name in sealed and sealed[name] != own[name]}


def told(changed: Mapping[str, Sequence[Any]]) -> str:
    """Returns differences as text: "learning_rate was 1e-06 and is 2e-06; ..."."""
    return _all_told(changed, "{name} was {before} and is {now}")


def told_beside(changed: Mapping[str, Sequence[Any]]) -> str:
    """Returns differences of two runs at once as text: "learning_rate is 2e-06 instead of 1e-06; ..."."""
    return _all_told(changed, "{name} is {now} instead of {before}")


def _all_told(changed: Mapping[str, Sequence[Any]], words: str) -> str:
    return "; ".join(_told(name, before, now, words) for name, (before, now) in changed.items())


def _told(name: str, before: Any, now: Any, words: str) -> str:
    if _is_hash(before) or _is_hash(now):
        return f"{name} {'are' if name.endswith('pairs') else 'is'} not the same"
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return f"{name}: {', '.join(_told(key, before.get(key), now.get(key), words) for key in names)}"
    return words.format(name=name, before=_shown(before), now=_shown(now))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 32 and all(letter in "0123456789abcdef" for letter in value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
