"""Runs that go wrong on purpose, and healthy ones: what the health monitor says of each, over several seeds.

    python scripts/health_runs.py [--seeds 42 43 44 45 46] [--only NAME]   # needs scripts/quickstart.py prepare

`make health` runs it. Runs of SmolLM2 need `make demo` before, whose answers they train on, and are left out without
them. What is done is not done again; the table between the marks of docs/health.md is written after each run.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from marked_page import write_between

from simpo_trainer.environment import library_versions
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "health.md"
_MARKS = "<!-- table: written by `make health` -->", "<!-- end of table -->"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A model with its pairs.

    Args:
        name: in the table.
        recipe: what is trained.
        train, test: files of rows.
        pairs: makes pairs of the rows of a file.
        words: overrides of every run.
        wrecking: a learning rate 1000 times that of the runs.
    """

    name: str
    recipe: Path
    train: Path
    test: Path
    pairs: Callable[[Rows], Rows]
    words: tuple[str, ...]
    wrecking: str


@dataclass(frozen=True)
class Case:
    """A way to train.

    Args:
        name: in the table.
        words: overrides of the recipe.
        expected: rules of which one at least must speak; empty for a healthy run, of which none may.
        change: makes its training rows of the world's.
    """

    name: str
    words: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    change: Callable[[Rows], Rows] | None = None


def swapped(rows: Rows) -> Rows:
    """Returns the rows with chosen and rejected swapped."""
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def repeated(rows: Rows) -> Rows:
    """Returns the first row as often as there are rows."""
    return rows[:1] * len(rows)


def as_they_are(rows: Rows) -> Rows:
    """Returns the pairs of a file of pairs."""
    return rows


def against_lower_case(rows: Rows) -> Rows:
    """Returns pairs of the first complete answer of a prompt, and the same in lower case.

    The model tells the two apart at the start, and learns in few steps to like either: so swapped labels show in the
    held-out accuracy, which those of `make demo` do not.
    """
    pairs = []
    for row in rows:
        ended = [text for text, reason in zip(row["answers"], row["finish_reasons"], strict=True) if reason == "stop"]
        if ended and ended[0] != ended[0].lower():
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (ended[0], ended[0].lower()))
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs[:_PAIRS]


_PAIRS = 96

QUICKSTART = World(
    "quickstart",
    ROOT / "recipes/quickstart.yaml",
    ROOT / "runs/quickstart/data/train.jsonl",
    ROOT / "runs/quickstart/data/test.jsonl",
    as_they_are,
    ("--num_train_epochs", "1", "--eval_strategy", "steps", "--eval_steps", "10", "--logging_steps", "2"),
    "0.1",
)
SMOLLM2 = World(
    "SmolLM2-135M-Instruct",
    ROOT / "runs/demo/recipe.yaml",
    ROOT / "runs/demo/answers.jsonl",
    ROOT / "runs/demo/held-out-answers.jsonl",
    against_lower_case,
    ("--learning_rate", "2e-5", "--eval_strategy", "steps", "--eval_steps", "6", "--logging_steps", "1"),
    "2e-2",
)
# beta and gamma_beta_ratio of the paper's recipes.
PAPER = ((2.0, 0.5), (2.0, 0.8), (2.5, 0.1), (2.5, 0.5), (2.5, 0.55), (10.0, 0.3), (10.0, 0.5))
_FALLS = ("chosen falls", "both fall", "margin by rejected", "chosen low", "loss rises")
_SHORT = ("--max_steps", "3")


def cases(world: World) -> list[Case]:
    """Returns the cases of a world."""
    sick = [
        Case("learning rate x 1000", ("--learning_rate", world.wrecking), _FALLS),
        Case("labels swapped in the training rows", (), ("accuracy falls",), swapped),
        Case("one pair repeated", (), ("repeated pairs", "margin past", *_FALLS), repeated),
        Case("beta 0.01", ("--beta", "0.01", *_SHORT), ("tiny beta",)),
        Case("a step of one pair", _ONE_PAIR, ("tiny batch",)),
    ]
    healthy = [
        Case(f"healthy: beta {beta:g}, ratio {ratio:g}", ("--beta", f"{beta:g}", "--gamma_beta_ratio", f"{ratio:g}"))
        for beta, ratio in PAPER
    ]
    return [*sick, *healthy]


_ONE_PAIR = (
    *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--global_batch_size", "1"),
    *_SHORT,
)


def main(arguments: Sequence[str]) -> None:
    """Run what was not run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    parser.add_argument("--folder", type=Path, default=Path("runs/health"), help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="NAME", help="worlds and cases whose names hold this text")
    parser.add_argument("--no-page", action="store_true", help="print the table, and leave the page as it is")
    given = parser.parse_args(arguments)
    worlds = [world for world in (QUICKSTART, SMOLLM2) if world.train.exists() and world.test.exists()]
    if QUICKSTART not in worlds:
        sys.exit("error: there is no quickstart model. Run: python scripts/quickstart.py prepare")
    for world in worlds:
        for case in cases(world):
            for seed in given.seeds:
                if given.only in f"{world.name} {case.name}":
                    _run(given.folder, world, case, seed)
                    if not given.no_page:
                        write_page(table(given.folder, worlds, given.seeds), given.seeds)
    print(table(given.folder, worlds, given.seeds))


def write_page(lines: str, seeds: Sequence[int]) -> None:
    """Put the table between the marks of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    text = f"{lines}\n\nSeeds {', '.join(map(str, seeds))}; {date.today()}; {versions}."
    write_between(PAGE, _MARKS, text)


def table(folder: Path, worlds: Sequence[World], seeds: Sequence[int]) -> str:
    """Returns the table of all cases in Markdown."""
    rows = [["model", "run", "seeds", "hits", "misses", "false alarms", "findings (in how many runs)"]]
    rows.append(["---"] * len(rows[0]))
    for world in worlds:
        for case in cases(world):
            done = [found for seed in seeds if (found := _result(folder, world, case, seed)) is not None]
            rows.append([world.name, case.name, *_judged(case, done)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _judged(case: Case, done: list[list[str]]) -> list[str]:
    if not done:
        return ["not run", "", "", "", ""]
    counts = {rule: sum(rule in found for found in done) for found in done for rule in found}
    named = ", ".join(f"{rule} ({count})" for rule, count in sorted(counts.items(), key=lambda each: -each[1]))
    hits = sum(bool(set(found) & set(case.expected)) for found in done)
    if case.expected:
        return [str(len(done)), str(hits), str(len(done) - hits), "", named]
    return [str(len(done)), "", "", str(sum(bool(found) for found in done)), named or "none"]


def _folder(folder: Path, world: World, case: Case, seed: int) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", f"{world.name} {case.name} {seed}".lower())
    return folder / name


def _result(folder: Path, world: World, case: Case, seed: int) -> list[str] | None:
    file = _beside(_folder(folder, world, case, seed), ".findings.json")
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _run(folder: Path, world: World, case: Case, seed: int) -> None:
    if _result(folder, world, case, seed) is not None:
        return
    output = _folder(folder, world, case, seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = _beside(output, ".data")
    data.mkdir(exist_ok=True)
    train, test = world.pairs(_read(world.train)), world.pairs(_read(world.test))
    _write(data / "train.jsonl", case.change(train) if case.change else train)
    _write(data / "test.jsonl", test)
    print(f"{world.name}, {case.name}, seed {seed}", flush=True)
    words = {"dataset_name": str(data), "output_dir": str(output), "seed": str(seed)}
    given = [word for name, value in words.items() for word in (f"--{name}", value)]
    run(load_recipe(str(world.recipe), [*given, *_ALWAYS, *world.words, *case.words]))
    found = json.loads((output / "run_manifest.json").read_text(encoding="utf-8"))["findings"]
    file = _beside(output, ".findings.json")
    file.write_text(json.dumps(list(dict.fromkeys(each["rule"] for each in found))), encoding="utf-8")
    (output / "model.safetensors").unlink(missing_ok=True)


_ALWAYS = ("--dataset_test_split", "test", "--save_strategy", "no", "--resume_from_checkpoint", "false")


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def _read(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
