"""The instructions of the demonstration that a program can check: a small function for each kind.

An answer meets a constraint or does not. One of fewer than three words, or one that goes round, meets none: to say
nothing, or the same again and again, is no way to obey.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEAST_WORDS = 3
# Above this repeat rate an answer goes round. Greedy answers of a small model do so often, sampled ones hardly ever.
MOST_REPEATED = 0.2


@dataclass(frozen=True)
class Kind:
    """A kind of constraint: the sentence that asks for it, its possible values, and the check of an answer."""

    text: str
    values: tuple[Any, ...]
    check: Callable[[str, Any], bool]


def words_of(answer: str) -> list[str]:
    """Returns the words of an answer."""
    return answer.split()


def sentences_of(answer: str) -> list[str]:
    """Returns the sentences of an answer: texts that end in a full stop, a question mark or an exclamation mark."""
    return [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", answer.strip()) if re.search(r"\w", part)]


def _sentences(answer: str, count: int) -> bool:
    return len(sentences_of(answer)) == count


def _at_most_words(answer: str, count: int) -> bool:
    return len(words_of(answer)) <= count


def _at_least_words(answer: str, count: int) -> bool:
    return len(words_of(answer)) >= count


def _without(answer: str, sign: str) -> bool:
    return sign not in answer


def _begins(answer: str, word: str) -> bool:
    return re.match(rf"\W*{word}\b", answer) is not None


def _ends(answer: str, sign: str) -> bool:
    return answer.rstrip().rstrip("\"')*").endswith(sign)


def _mentions(answer: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None


def _lacks_word(answer: str, word: str) -> bool:
    return not _mentions(answer, word)


def _lower_case(answer: str, _: None) -> bool:
    return answer == answer.lower()


def _lines(answer: str, count: int) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == count and all(re.match(r"\s*[-*•]", line) for line in lines)


_SENTENCES = {"one sentence": 1, "two sentences": 2, "three sentences": 3}
KINDS: dict[str, Kind] = {
    "sentences": Kind("Answer with exactly {}.", tuple(_SENTENCES), lambda a, v: _sentences(a, _SENTENCES[v])),
    "at most words": Kind("Use at most {} words.", (12, 15, 20, 25, 30), _at_most_words),
    "at least words": Kind("Use at least {} words.", (40, 50, 60), _at_least_words),
    "no commas": Kind("Do not use any commas.", (None,), lambda a, v: _without(a, ",")),
    "begin": Kind("Begin your answer with the word {}.", ("Well", "Look", "Indeed", "Honestly"), _begins),
    "question": Kind("End your answer with a question.", (None,), lambda a, v: _ends(a, "?")),
    "exclamation": Kind("End your answer with an exclamation mark.", (None,), lambda a, v: _ends(a, "!")),
    "mention": Kind("Use the word {}.", ("old", "quiet", "people", "water", "often", "small"), _mentions),
    "avoid": Kind("Do not use the word {}.", ("and", "of", "is"), _lacks_word),
    "lower case": Kind("Write everything in lower case.", (None,), _lower_case),
    "list": Kind("Answer with a list of {} lines that begin with a dash.", (2, 3, 4), _lines),
}


def met(constraints: list[dict[str, Any]], answer: str) -> list[bool]:
    """Returns for each constraint of a prompt whether an answer meets it.

    Args:
        constraints: each with its `kind` and its `value`.
        answer: the text.
    """
    if len(words_of(answer)) < LEAST_WORDS or repeat_rate(answer) > MOST_REPEATED:
        return [False] * len(constraints)
    return [KINDS[each["kind"]].check(answer, each["value"]) for each in constraints]


def score(prompt: list[dict[str, Any]], answer: str, row: dict[str, Any]) -> float:
    """Returns the share of the constraints of a row that an answer meets; for `simpo annotate --score`."""
    found = met(row["constraints"], answer)
    return sum(found) / len(found)


def repeat_rate(answer: str, length: int = 4) -> float:
    """Returns the share of an answer's runs of words that occurred in it before."""
    words = [word.lower() for word in words_of(answer)]
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
