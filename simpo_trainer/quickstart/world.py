"""Make the files of the quickstart in a folder: the warmed-up model, preference pairs, and prompts to check."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import torch

from ..errors import SimPOError
from .tasks import Item, draw_distinct
from .toy_model import build_model, build_tokenizer
from .warm_up import warm_up

TRAIN_PAIRS = 2000
HELD_OUT_PAIRS = 400
WARM_UP_STEPS = 700


def prepare(
    folder: Path, seed: int = 0, warm_up_steps: int = WARM_UP_STEPS, report: Callable[[str], None] = print
) -> None:
    """Write `model/`, `data/train.jsonl`, `data/test.jsonl` and `prompts.jsonl` into `folder`.

    The test pairs and the prompts are the same held-out instructions, none of which occurs in training. The same seed
    gives the same data everywhere, and the same weights on the same machine.

    Raises:
        SimPOError: `folder` cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimPOError(f"{folder} cannot be made: {error.strerror}. Give --folder a folder of yours.") from None
    rng = Random(seed)
    train = draw_distinct(rng, held_out=False, count=TRAIN_PAIRS)
    held_out = draw_distinct(rng, held_out=True, count=HELD_OUT_PAIRS)
    tokenizer = build_tokenizer(text for item in train + held_out for text in (item.instruction, item.right, item.bad))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(tokenizer)
    report(f"model of {model.num_parameters():,} weights, {len(tokenizer)} tokens; {len(train)} pairs to train on")
    warm_up(model, tokenizer, rng, warm_up_steps, report)

    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    _write_lines(folder / "data" / "train.jsonl", map(_pair, train))
    _write_lines(folder / "data" / "test.jsonl", map(_pair, held_out))
    _write_lines(folder / "prompts.jsonl", map(_prompt, held_out))
    report(f"wrote {folder}: model/, data/ and prompts.jsonl")


def _pair(item: Item) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": item.instruction}],
        "chosen": [{"role": "assistant", "content": item.right}],
        "rejected": [{"role": "assistant", "content": item.bad}],
        "kind": item.kind,
    }


def _prompt(item: Item) -> dict[str, Any]:
    return {"instruction": item.instruction, "right": item.right, "kind": item.kind}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
