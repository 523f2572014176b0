"""The prompts of the demonstration: a topic, a way to ask, and one or two constraints, combined at random.

Held out are topics, and combinations of two kinds of constraint: no held-out prompt has a topic that was trained on,
and none with two constraints a combination that was.
"""

from itertools import combinations
from random import Random
from typing import Any
from zlib import crc32

from demo_rules import KINDS

TOPICS = (
    *("the sea", "winter", "bread", "a library", "the moon", "bicycles", "tea", "a garden", "trains", "whales"),
    *("mountains", "a clock", "the piano", "rain", "honey", "a bridge", "wolves", "the desert", "painting", "salt"),
    *("a lighthouse", "chess", "the wind", "coffee", "a market", "owls", "the violin", "rice", "an island", "snow"),
    *("a kitchen", "football", "the stars", "wool", "a castle", "rivers", "paper", "a forest", "cheese", "dancing"),
)
HELD_OUT_TOPICS = (
    *("the sun", "a museum", "horses", "glass", "a harbour", "apples", "the guitar", "autumn", "a letter", "bees"),
    *("swimming", "a windmill", "potatoes", "the night", "a school", "gold", "penguins", "the theatre", "soup", "maps"),
)
WAYS = (
    "Tell me something about {}.",
    "Write about {}.",
    "What is interesting about {}?",
    "Describe {}.",
)
# One combination of kinds in this many is held out.
_HELD_OUT_ONE_IN = 3
# Kinds that no answer can meet together, or that say the same.
_APART = [
    {"at most words", "at least words"},
    {"question", "exclamation"},
    {"begin", "lower case"},
    {"sentences", "at least words"},
    {"sentences", "list"},
    {"list", "begin"},
    {"list", "at most words"},
    {"list", "question"},
    {"list", "exclamation"},
]
_SHARE_OF_TWO = 0.4


def make_prompts(count: int, held_out: bool, seed: int) -> list[dict[str, Any]]:
    """Returns different prompts, each with its constraints; all kinds are equally frequent in those with one.

    Args:
        count: how many.
        held_out: of which side topics and combinations are.
        seed: the draw.
    """
    rng, rows = Random(seed), dict[str, dict[str, Any]]()
    kinds = list(KINDS)
    pairs = [pair for pair in combinations(kinds, 2) if set(pair) not in _APART and _is_held_out(pair) == held_out]
    while len(rows) < count:
        chosen = rng.choice(pairs) if rng.random() < _SHARE_OF_TWO else (kinds[len(rows) % len(kinds)],)
        constraints = [{"kind": kind, "value": rng.choice(KINDS[kind].values)} for kind in chosen]
        topic = rng.choice(HELD_OUT_TOPICS if held_out else TOPICS)
        asked = " ".join(
            [rng.choice(WAYS).format(topic), *(KINDS[each["kind"]].text.format(each["value"]) for each in constraints)]
        )
        rows[asked] = {"prompt": [{"role": "user", "content": asked}], "constraints": constraints, "topic": topic}
    return list(rows.values())


def _is_held_out(pair: tuple[str, str]) -> bool:
    return crc32(" ".join(pair).encode()) % _HELD_OUT_ONE_IN == 0
