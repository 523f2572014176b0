"""Run what waits for a card, within ten minutes: the tests marked gpu, then the cases of gpu_cases.py (`make gpu`).

    python scripts/gpu.py [--budget 600] [--out FOLDER]
    python scripts/gpu.py --device cpu        tries it all out with tiny models, in runs/gpu-cpu

The page, docs/gpu.md, is written anew after each case, and each result is a line of runs/gpu/results.jsonl. Cases
with a line for the same code and device are not run again; remove the line of one that should be.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never

import benchmark
import torch
from bench_process import RATE, measured, run_within
from bench_rows import backbone_parameters, medians, needed_flops, two_by_two, unique_tokens
from bench_training import make_job, summary
from gpu_cases import CASES, Case, lacks
from gpu_page import disagreements, page, write

from simpo_trainer.environment import library_versions

ROOT = Path(__file__).parents[1]
# Seconds: the most that the tests, their share of the budget, and a case may take, and the least to begin a case with.
TESTS_LIMIT, TESTS_SHARE, CASE_LIMIT, CASE_LEAST = 150, 0.25, 120, 20
_TESTS = "tests marked gpu"
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "flash-attn", "python")


@dataclass
class Results:
    """What was found, by case: a line of a file each, of which those of the same code and device are read again.

    Args:
        same: what a line must say to be read again.
    """

    file: Path
    same: Mapping[str, str]
    found: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        text = self.file.read_text() if self.file.exists() else ""
        if text and not text.endswith("\n"):  # whoever wrote it was killed; the next line must not be lost with it
            with self.file.open("a") as file:
                file.write("\n")
        read = [line for line in map(_read, text.splitlines()) if line]
        self.found = {line["case"]: line for line in read if all(line[key] == self.same[key] for key in self.same)}

    def add(self, case: str, result: Mapping[str, Any]) -> None:
        """Keep the result of a case."""
        self.found[case] = {"case": case, **self.same, "at": _now(), **result}
        with self.file.open("a") as file:
            print(json.dumps(self.found[case]), file=file)


def _read(line: str) -> dict[str, Any] | None:
    """A line of results; None for one that was cut off."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def main(arguments: Sequence[str]) -> int:
    """Run everything; returns 1 if a test or a case failed or losses disagree."""
    options = _parse(arguments)
    end = time.monotonic() + options.budget
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device is visible, so nothing was run. To try it out: --device cpu")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, the trainers would share batches out
    signal.signal(signal.SIGTERM, _interrupted)
    tiny = options.device == "cpu"
    folder = options.out or ROOT / "runs" / ("gpu-cpu" if tiny else "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "gpu.md" if tiny or options.out else ROOT / "docs" / "gpu.md"

    rate = measured(RATE, {"cuda": not tiny}, CASE_LIMIT)
    if "error" in rate:
        raise SystemExit(f"error: the rate of matrix products could not be measured: {rate['error']}")
    results = Results(folder / "results.jsonl", {"code": code_digest(), "device": rate["device"]})
    facts = _facts(rate, options)

    def show() -> None:
        write(target, page(facts, results.found, results.found.get(_TESTS)))

    try:
        if _TESTS not in results.found:
            results.add(_TESTS, _run_tests(min(TESTS_LIMIT, TESTS_SHARE * options.budget), folder))
        show()
        run_cases(results, end, lambda case, seconds: measure(case, rate, seconds, tiny), show)
    except KeyboardInterrupt:
        print(f"stopped; {target.name} has what was found, and the same command goes on", flush=True)
        return 130
    return _conclude(results, target)


def run_cases(
    results: Results,
    end: float,
    run: Callable[[Case, float], dict[str, Any]],
    show: Callable[[], None],
) -> None:
    """Run the cases that have no result, in their order, until the time is over.

    Args:
        end: by `time.monotonic`.
        run: measures a case within so many seconds.
        show: is called after each case.
    """
    for case in CASES:
        left = end - time.monotonic()
        if case.name in results.found or lacks(case) or left < CASE_LEAST:
            continue
        limit, began = min(CASE_LIMIT, left), time.monotonic()
        result = run(case, limit)
        seconds = time.monotonic() - began
        # What the end of the budget cut off may be in time when the command is given again.
        if not (result.get("late") and limit < CASE_LIMIT):
            results.add(case.name, {**result, "seconds": seconds})
        show()
        said = result.get("error") or f"{result['pairs_per_second']:.2f} pairs/s"
        print(f"{case.name}: {said}  ({seconds:.0f} s)", flush=True)


def measure(case: Case, rate: Mapping[str, Any], seconds: float, tiny: bool) -> dict[str, Any]:
    """The figures of a case as a row of the benchmark, or its error."""
    options = benchmark.parse(case.words(tiny))
    job = make_job(options) | {"bf16": True}
    flops = needed_flops(job["rows"], job["shape"], backbone_parameters(job["shape"]), frozen=job["lora"])
    pairs, tokens = len(two_by_two(job["rows"])), unique_tokens(job["rows"])
    floor = flops / rate["flops_per_second"]
    row = summary(measured(case.row, job, seconds), pairs, tokens, options.steps, floor)
    return {**row, "medians": medians(job["rows"]), "command": shlex.join(case.words(tiny))}


def _run_tests(seconds: float, folder: Path) -> dict[str, Any]:
    """Run the tests marked gpu; returns their last line in `said`, and the lines of those that failed."""
    marked = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    if not marked:
        return {"said": "No test is marked gpu.", "failed": []}
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(ROOT), "-m", "gpu", *marked]
    status, output = run_within(command, seconds, folder / "tests.txt")
    lines = output.strip().splitlines() or ["no output"]
    failed = [line for line in lines if re.match("(FAILED|ERROR) ", line)]
    if status is None:
        return {"said": f"Ended after {seconds:.0f} s, which was their limit.", "failed": failed or [lines[-1]]}
    return {"said": lines[-1], "failed": failed if status == 0 else failed or [f"exit status {status}"]}


def _conclude(results: Results, target: Path) -> int:
    """Say how it went; returns the exit status."""
    errors = [name for name, found in results.found.items() if "error" in found or found.get("failed")]
    others = disagreements(results.found)
    open_cases = [case for case in CASES if not (case.name in results.found or lacks(case))]
    skipped = sum(lacks(case) is not None for case in CASES)
    print(f"{len(CASES) - skipped - len(open_cases)} cases have results, {skipped} are skipped, {len(errors)} failed")
    for group in others:
        print(f"{group}: LOSSES DISAGREE")
    if open_cases:
        print(f"{len(open_cases)} cases had no time; the same command goes on with them")
    print(f"the page is {target.name}")
    return 1 if errors or others else 0


def code_digest() -> str:
    """A fingerprint of the package and its benchmark, of which results are the same only for the same code."""
    digest = hashlib.sha256()
    for file in sorted(file for name in ("simpo_trainer", "scripts") for file in (ROOT / name).rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _commit() -> str:
    """The commit of the checkout, with a mark if files were changed since; "unknown" outside of one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "simpo_trainer", "scripts", "tests")
        return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _facts(rate: Mapping[str, Any], options: argparse.Namespace) -> dict[str, str]:
    """The lines at the head of the page."""
    versions = library_versions()
    card = {}
    if "memory_bytes" in rate:
        card = {"memory": f"{rate['memory_bytes'] / 2**30:.0f} GiB", "driver": rate["driver"], "CUDA": rate["cuda"]}
    return {
        "device": rate["device"],
        **card,
        **{name: versions.get(name, "not installed") for name in _PACKAGES},
        "commit": _commit(),
        "command": f"`python scripts/gpu.py --device {options.device} --budget {options.budget:g}`",
        "first row": f"`python scripts/benchmark.py {shlex.join(CASES[0].words(not card))}`",
        "rate of matrix products": f"{rate['flops_per_second'] / 1e12:.3g} Tflop/s",
        "begun": _now(),
    }


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _interrupted(number: int, frame: Any) -> Never:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=600, help="seconds for all of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny models, to try it out")
    parser.add_argument("--out", type=Path, help="folder for page and results instead of docs/ and runs/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
