"""Long suites outside of pytest: a line of results for each case, so that one that was stopped goes on where it was."""

import argparse
import fcntl
import fnmatch
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
Result = dict[str, Any]


class Case(Protocol):
    """A case: its name is unlike all others, its kind is that of a row in a summary."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...


def run_suite(
    title: str,
    cases: Sequence[Case],
    folder: Path,
    *,
    prepare: Callable[[Sequence[Case], Path, str], Callable[[Any, Path], Result]],
    write: Callable[[Sequence[Result], str], Path],
) -> int:
    """Run the cases that the command line asks for, and write the page of all results.

    Args:
        title: what the suite does, for its help.
        cases: all that there are, in the order in which they are run.
        folder: for runs and results, unless another is given.
        prepare: from the cases that are left, the folder and the commit to a function that runs one case in a folder
            of its own and returns its result, with a `verdict`; one that begins with FAILED fails the suite.
        write: writes the page from the results and the commit, and returns where.

    Returns:
        The exit status: 1 if a case failed.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("folder", nargs="?", type=Path, default=folder, help="for runs and results")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases with this in their names, * for anything")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--list", action="store_true", help="show the cases, and run none")
    given = parser.parse_args()
    wanted = [case for case in cases if fnmatch.fnmatchcase(case.name, f"*{given.only}*")]
    if given.list:
        print("\n".join(case.name for case in wanted))
        return 0
    folder, commit = given.folder.resolve(), commit_of_package()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "suite.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a second suite here would remove the runs of the first
            raise SystemExit(f"Another suite is running in {folder}; wait for it, or name another folder.") from None
        done = _read(folder / "results.jsonl", commit)
        left = [case for case in wanted if case.name not in done]
        _run(left, folder, commit, given.jobs, prepare(left, folder, commit), done)
    page = write([done[case.name] for case in cases if case.name in done], commit)
    failed = [name for name, found in done.items() if found["verdict"].startswith("FAILED")]
    print(
        f"{len(done)} of {len(cases)} cases have results, {len(failed)} failed; the table is {page.relative_to(ROOT)}"
    )
    return 1 if failed else 0


def _run(
    left: Sequence[Case],
    folder: Path,
    commit: str,
    jobs: int,
    do: Callable[[Case, Path], Result],
    done: dict[str, Result],
) -> None:
    """Run cases, and keep each result as soon as all before it are there."""
    places: Queue[Path] = Queue()
    for number in range(jobs):
        places.put(folder / f"case-{number + 1}")

    def run(case: Case) -> Result:
        place, began = places.get(), time.monotonic()
        try:
            found = do(case, place)
        finally:
            places.put(place)
        return {"case": case.name, "kind": case.kind, "commit": commit, **found, "seconds": time.monotonic() - began}

    with ThreadPoolExecutor(jobs) as threads:
        for number, found in enumerate(threads.map(run, left), 1):
            done[found["case"]] = found
            with (folder / "results.jsonl").open("a") as file:
                print(json.dumps(found), file=file)
            said = f"{number}/{len(left)}  {found['case']}: {found['verdict']}  ({found['seconds']:.0f} s)"
            print(said, flush=True)


def _read(results: Path, commit: str) -> dict[str, Result]:
    """Returns the results of this commit by case; one that failed may be run again by removing its line."""
    if not results.exists():
        return {}
    if not (written := results.read_text()).endswith("\n"):  # of a suite that was killed while it wrote
        written = written[: written.rfind("\n") + 1]
        results.write_text(written)
    lines = [json.loads(line) for line in written.splitlines()]
    return {line["case"]: line for line in lines if line["commit"] == commit}


def commit_of_package() -> str:
    """Returns the last commit of the package, with a mark if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    parts = ("--", "simpo_trainer", "recipes")
    changed = git("status", "--porcelain", *parts)
    return git("log", "-1", "--format=%h", "--abbrev=10", *parts) + ("+changes" if changed else "")
