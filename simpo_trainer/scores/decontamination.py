"""Leaves out prompts that an evaluation set holds too: those that share a run of words with one of its texts."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sources import Source, load_splits, readable_rows
from ..errors import SimPOError
from ..log import get_logger
from ..model.network import settle_network
from ..record.privacy import public_label

logger = get_logger(__name__)

# Letters and digits of any script. Of a script without spaces, all between two punctuation marks is one word.
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Match:
    """The evaluation set that a prompt shares words with, and these words."""

    set_name: str
    words: str


@dataclass(frozen=True)
class EvaluationSet:
    """The runs of words of an evaluation set; `whole` are its texts that are shorter than a run."""

    name: str
    runs: frozenset[str]
    whole: frozenset[str]
    fingerprint: str


class Decontamination:
    """Finds prompts that evaluation sets hold too.

    Args:
        names: of the sets: files, folders, or data sets of the Hub; all texts of all their splits are read.
        length: words of a run.

    Raises:
        SimPOError: a set cannot be found or read, or holds no text.
    """

    def __init__(self, names: Sequence[str], length: int) -> None:
        settle_network(names)
        self._length = length
        self._sets = [_read_set(name, length) for name in names]
        # What decides which prompts are left out.
        self.identity: dict[str, Any] = {
            "words": length,
            "sets": [{"name": each.name, "texts": each.fingerprint} for each in self._sets],
        }

    def match(self, prompt: Sequence[Mapping[str, Any]]) -> Match | None:
        """Returns the first set that shares a run of words with what the user says in a prompt; None without one."""
        for text in _user_texts(prompt):
            runs = list(_runs(text, self._length))
            for each in self._sets:
                if found := next(
                    (run for run, is_whole in runs if run in (each.whole if is_whole else each.runs)), None
                ):
                    return Match(each.name, found)
        return None


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case; an accent that is a sign of its own is one with its letter."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _runs(text: str, length: int) -> Iterator[tuple[str, bool]]:
    """Yields the runs of words of a text, or all its words if it is shorter; and whether they are all."""
    words = words_of(text)
    if len(words) < length:
        if words:
            yield " ".join(words), True
        return
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length]), False


def _read_set(name: str, length: int) -> EvaluationSet:
    runs: tuple[set[str], set[str]] = (set(), set())
    digest = hashlib.sha256()
    for split, rows in load_splits(Source(name)).items():
        for row in readable_rows(rows, f"Split {split!r} of {name}"):
            for text in _texts(row):
                digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
                for run, is_whole in _runs(text, length):
                    runs[is_whole].add(run)
    if not any(runs):
        raise SimPOError(
            f"decontaminate names {name}, which holds no text: prompts cannot be compared with it. Name a set whose "
            "rows hold the prompts of the evaluation, or remove it."
        )
    label = public_label(name)
    logger.info(f"{label}: {len(runs[0]):,} runs of {length} words, {len(runs[1]):,} shorter texts")
    return EvaluationSet(label, frozenset(runs[0]), frozenset(runs[1]), digest.hexdigest()[:16])


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a row, however deep it lies."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _texts(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside)


def _user_texts(prompt: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for message in prompt:
        if message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            # Not all texts of a part: each has a type, which is a text that sets hold too.
            yield from (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def left_out_path(output: Path) -> Path:
    """Returns the path of the list of prompts that were left out of a file."""
    return output.with_suffix(".left-out.jsonl")
