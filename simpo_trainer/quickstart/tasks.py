"""Kinds of short instructions with one right answer each: the texts of the quickstart.

An item is an instruction about a short list of words, with its right answer and a bad answer. This module is pure
Python, and the given `random.Random` decides all draws. Items are held out by content: a list of words belongs either
to the training side or to the held-out side, for all kinds and phrasings, so a held-out instruction is never a training
instruction in another phrasing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from zlib import crc32

ANIMALS = ("badger", "crow", "eel", "goat", "heron", "lynx", "otter", "sheep", "toad", "yak")
COLOURS = ("amber", "blue", "coral", "green", "indigo", "pink", "red", "teal", "violet", "white")
TOOLS = ("axe", "brush", "drill", "file", "hammer", "knife", "ladder", "rake", "saw", "wrench")
FOODS = ("apple", "bread", "cheese", "fig", "honey", "lemon", "nut", "olive", "rice", "soup")
WORDS = ANIMALS + COLOURS + TOOLS + FOODS
NUMBERS = ("one", "two", "three", "four", "five")

# One list of words in this many is held out.
HELD_OUT_ONE_IN = 6

# A bad answer only rambles, or rambles before the right answer, or is short and wrong. Most begin with the same word,
# so that rambling competes with the right beginning. The numbers are the shares of each form among bad answers.
RAMBLES = (
    "let me think about this",
    "that is a good question",
    "there is much to say",
    "it could be any of them",
    "I have to look again",
)
BAD_FORMS = {"rambling": 0.65, "rambling, then right": 0.3, "wrong": 0.05}


@dataclass(frozen=True)
class Item:
    """One instruction of a kind, the only right answer to it, and a bad answer."""

    kind: str
    instruction: str
    right: str
    bad: str


@dataclass(frozen=True)
class Answers:
    """The right answer to a question, and a short wrong answer."""

    right: str
    wrong: str


@dataclass(frozen=True)
class Kind:
    """The possible numbers of words in an instruction, its phrasings, and a function for its answers.

    `answer` returns None for words for which the question does not have exactly one right answer.
    """

    sizes: tuple[int, ...]
    phrasings: tuple[str, ...]
    answer: Callable[[Sequence[str], Random], Answers | None]


def _one_of(words: Sequence[str], right: str, rng: Random) -> Answers:
    """Returns the right word, with any other of the words as the wrong answer."""
    return Answers(right, rng.choice([word for word in words if word != right]))


def _at(position: int) -> Callable[[Sequence[str], Random], Answers]:
    return lambda words, rng: _one_of(words, words[position], rng)


def _the_only(group: Sequence[str]) -> Callable[[Sequence[str], Random], Answers | None]:
    def answer(words: Sequence[str], rng: Random) -> Answers | None:
        members = [word for word in words if word in group]
        return _one_of(words, members[0], rng) if len(members) == 1 else None

    return answer


def _copy(words: Sequence[str], rng: Random) -> Answers:
    return Answers(" ".join(words), " ".join([*words, rng.choice(WORDS)]))


def _twice(words: Sequence[str], rng: Random) -> Answers:
    text = " ".join(words)
    return Answers(f"{text} {text}", rng.choice([text, f"{text} {text} {text}"]))


def _count(words: Sequence[str], rng: Random) -> Answers:
    return _one_of(NUMBERS, NUMBERS[len(words) - 1], rng)


def _commas(words: Sequence[str], rng: Random) -> Answers:
    return Answers(", ".join(words), " ".join(words))


def _brackets(words: Sequence[str], rng: Random) -> Answers:
    return Answers(f"[{' '.join(words)}]", " ".join(words))


def _swap(words: Sequence[str], rng: Random) -> Answers:
    return Answers(" ".join(reversed(words)), " ".join(words))


def _ends(words: Sequence[str], rng: Random) -> Answers:
    return Answers(f"{words[0]} and {words[-1]}", f"{words[-1]} and {words[0]}")


def _alphabet(words: Sequence[str], rng: Random) -> Answers:
    return _one_of(words, min(words), rng)


def _longest(words: Sequence[str], rng: Random) -> Answers | None:
    longest = max(words, key=len)
    return _one_of(words, longest, rng) if [len(word) for word in words].count(len(longest)) == 1 else None


# The model learns each of these in the warm-up, measured on held-out items. Kinds that it did not learn from every seed
# were left out: the second word, the word before or after a given word, three words in reverse, leaving out or
# replacing a word, and whether a word is in a list.
KINDS = {
    "copy": Kind((1, 2), ("Copy this: {words}", "Say the same: {words}"), _copy),
    "twice": Kind((1, 2), ("Say this twice: {words}", "Write this two times: {words}"), _twice),
    "first": Kind((2, 3, 4), ("Say the first word: {words}", "Which word comes first: {words}"), _at(0)),
    "last": Kind((2, 3, 4), ("Say the last word: {words}", "Which word comes last: {words}"), _at(-1)),
    "count": Kind((1, 2, 3, 4, 5), ("How many words: {words}", "Count the words: {words}"), _count),
    "commas": Kind((2, 3), ("Put commas between: {words}", "Join with commas: {words}"), _commas),
    "brackets": Kind((1, 2), ("Put in brackets: {words}", "Write this in brackets: {words}"), _brackets),
    "swap": Kind((2,), ("Swap these: {words}", "Turn the two around: {words}"), _swap),
    "ends": Kind((3, 4), ("Say the first and last word: {words}", "Which words are at the ends: {words}"), _ends),
    "alphabet": Kind((2, 3), ("First in the alphabet: {words}", "Which is first by letters: {words}"), _alphabet),
    "longest": Kind((2, 3), ("Say the longest word: {words}", "Which word is longest: {words}"), _longest),
    "animal": Kind((2, 3), ("Say the animal: {words}", "Which one is the animal: {words}"), _the_only(ANIMALS)),
    "food": Kind((2, 3), ("Say the food: {words}", "Which one is the food: {words}"), _the_only(FOODS)),
}


def is_held_out(words: Sequence[str]) -> bool:
    """Returns whether these words, in this order, belong to the held-out side (the same on every machine)."""
    return crc32(" ".join(words).encode()) % HELD_OUT_ONE_IN == 0


def is_right(right: str, answer: str) -> bool:
    """Returns whether `answer` is exactly the right answer; only the spacing may differ."""
    return answer.split() == right.split()


def draw(rng: Random, held_out: bool) -> Item:
    """Returns one item of the training side or of the held-out side; all kinds are equally likely."""
    name, kind = rng.choice(list(KINDS.items()))
    while True:
        words = rng.sample(WORDS, rng.choice(kind.sizes))
        answers = kind.answer(words, rng) if is_held_out(words) == held_out else None
        if answers is not None:
            instruction = rng.choice(kind.phrasings).format(words=" ".join(words))
            return Item(name, instruction, answers.right, _bad_answer(answers, rng))


def draw_distinct(rng: Random, held_out: bool, count: int) -> list[Item]:
    """Returns `count` items of one side, with no instruction twice."""
    items: dict[str, Item] = {}
    while len(items) < count:
        item = draw(rng, held_out)
        items.setdefault(item.instruction, item)
    return list(items.values())


def _bad_answer(answers: Answers, rng: Random) -> str:
    first, second = rng.sample(RAMBLES, 2)
    form = rng.choices(list(BAD_FORMS), list(BAD_FORMS.values()))[0]
    return {
        "rambling": f"well, {first}, {second}",
        "rambling, then right": f"well, {first}, {answers.right}",
        "wrong": answers.wrong,
    }[form]
