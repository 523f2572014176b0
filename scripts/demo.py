"""A real model learns from its own answers: SmolLM2-135M-Instruct, and instructions that a program can check.

    python scripts/demo.py [--folder runs/demo]     # at most 40 minutes on two cores
    python scripts/demo.py --small                  # all of it in five minutes, with a quarter of the prompts
    python scripts/demo.py --all                    # also the other methods, written into docs/real-model.md
    python scripts/demo.py --rounds                 # instead three rounds of a third of the prompts, 10 minutes

Each step is a command of the package, shown before it runs. What is done is not done again: give the same command.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from demo_report import draw, show, write_result
from demo_runs import FULL, SMALL, Demo
from demo_search import FIRST_RATE, run_folder, search
from rich.console import Console

from simpo_trainer.environment import library_versions


def main(arguments: Sequence[str]) -> None:
    """Run the demonstration and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of everything that is made; runs/demo or runs/demo-small")
    parser.add_argument("--small", action="store_true", help="a quarter of the prompts, two settings searched")
    parser.add_argument("--all", action="store_true", help="also the other methods, for docs/real-model.md")
    parser.add_argument("--rounds", action="store_true", help="three rounds from the start model, by `simpo iterate`")
    given = parser.parse_args(arguments)
    if given.small and given.all:
        parser.error("--all takes the demonstration in full; leave out --small")
    folder = given.folder or Path("runs/demo-small" if given.small else "runs/demo")
    demo = Demo(folder, SMALL if given.small else FULL)
    start = time.monotonic()
    demo.make_ready()
    if given.rounds:
        demo.rounds(FIRST_RATE)
        return
    demo.answer()
    before = demo.greedy(folder / "model", "held-out", "before")
    best, tried = search(demo, given.small)
    run = run_folder(demo, best)
    after = demo.greedy(run, "held-out", "after")
    console = Console(width=120)
    show(console, before, after, demo.results(run), best, tried)
    write_result(folder / "result.json", before, after, best, tried)
    draw(folder / "result.png", before, {"after": after})
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    times = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in demo.seconds.items())
    console.print(
        f"{date.today()}; {versions}. Minutes: {times}; {(time.monotonic() - start) / 60:.1f} in all, of this call. "
        f"Wrote result.json and result.png in {folder}.",
        highlight=False,
    )
    if given.all:
        from demo_all import run_all  # which imports this file's parts

        run_all(demo, before, best)


if __name__ == "__main__":
    main(sys.argv[1:])
