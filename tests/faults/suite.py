"""Put every fault into runs, and write what became of them: `make test-faults`.

Results are kept line by line, so that a suite that was stopped goes on where it was, for the same commit.
"""

import argparse
import fcntl
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fault_cases import Case, Skipped, all_cases  # noqa: E402
from fault_runs import VARIANTS, Failed, Trial, make_reference  # noqa: E402
from fault_table import write_table  # noqa: E402

TABLE = Path(__file__).parent / "results.md"


def main() -> int:
    """Returns the exit status: 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "faults", help="for runs and results")
    parser.add_argument("--only", default="*", metavar="PATTERN", help='such as "kill / two*"')
    parser.add_argument("--jobs", type=int, default=1, help="cases at once, each with one or two processes")
    parser.add_argument("--list", action="store_true", help="show the cases, and run none")
    given = parser.parse_args()
    pattern = given.only if any(sign in given.only for sign in "*?[") else f"*{given.only}*"
    cases = [case for case in all_cases() if fnmatch.fnmatchcase(case.name, pattern)]
    if given.list:
        print("\n".join(case.name for case in cases))
        return 0
    folder, commit = given.folder.resolve(), _commit()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "suite.lock").open("w") as lock:
        # A second suite here would remove the runs of the first.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = _run_all(cases, folder, commit, given.jobs)
    write_table(TABLE, [done[case.name] for case in all_cases() if case.name in done], commit)
    failed = [name for name, found in done.items() if found["verdict"].startswith("FAILED")]
    print(f"{len(done)} results, {len(failed)} failed; the table is {TABLE.relative_to(ROOT)}")
    return 1 if failed else 0


def _run_all(cases: list[Case], folder: Path, commit: str, jobs: int) -> dict[str, dict[str, Any]]:
    """Returns the results by case: those that are kept, and the new ones."""
    results = folder / "results.jsonl"
    done = _read(results, commit)
    left = [case for case in cases if case.name not in done]
    whole = {variant: _reference(variant, folder, commit) for variant in dict.fromkeys(case.variant for case in left)}
    places: Queue[Path] = Queue()
    for number in range(jobs):
        places.put(folder / f"case-{number + 1}")

    def run(case: Case) -> dict[str, Any]:
        place = places.get()
        try:
            return {"case": case.name, "kind": case.kind, "commit": commit, **_run(case, place, *whole[case.variant])}
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as threads:
        for number, found in enumerate(threads.map(run, left), 1):
            done[found["case"]] = found
            with results.open("a") as file:
                print(json.dumps(found), file=file)
            said = f"{number}/{len(left)}  {found['case']}: {found['verdict']}  ({found['seconds']:.0f} s)"
            print(said, flush=True)
    return done


def _read(results: Path, commit: str) -> dict[str, dict[str, Any]]:
    """Returns the results of this commit by case; one that failed may be run again by removing its line."""
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]
    return {line["case"]: line for line in lines if line["commit"] == commit}


def _commit() -> str:
    """Returns the last commit of the package, with a mark if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "simpo_trainer")
    return git("log", "-1", "--format=%h", "--abbrev=10", "--", "simpo_trainer") + ("+changes" if changed else "")


def _run(case: Case, place: Path, reference: Path, duration: float) -> dict[str, Any]:
    if (disk := place / "out").is_mount():  # of a suite that was killed
        subprocess.run(["umount", "-l", str(disk)], check=True)
    shutil.rmtree(place, ignore_errors=True)
    trial = Trial(place, case.variant, reference / "out", duration)
    began = time.monotonic()
    try:
        case.do(trial)
        verdict = "equal"
    except Skipped as why:
        verdict = f"skipped: {why}"
    except Exception as error:
        verdict = f"FAILED: {error}" if isinstance(error, Failed) else f"FAILED: {type(error).__name__}: {error}"
        _keep(trial, place.parent / "failed" / "".join(sign if sign.isalnum() else "-" for sign in case.name))
    finally:
        trial.end_all()
    return {
        "kills": trial.kills,
        "starts": trial.starts,
        "went_on": trial.went_on,
        "notes": trial.notes,
        "verdict": verdict.replace(str(ROOT), "."),
        "seconds": round(time.monotonic() - began, 1),
    }


def _keep(trial: Trial, place: Path) -> None:
    """Keep the output of a case that failed, and what it left."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trial.folder, place)


def _reference(variant: str, folder: Path, commit: str) -> tuple[Path, float]:
    """Returns the run without a fault, which is made once for each commit, and how long it took."""
    place, note = folder / f"whole-{variant}", folder / f"whole-{variant}.json"
    known = json.loads(note.read_text()) if note.exists() else {}
    if known.get("commit") != commit:
        duration = make_reference(place, variant)
        note.write_text(json.dumps({"commit": commit, "seconds": duration, "made": f"{datetime.now(UTC):%F %T}"}))
        return place, duration
    return place, known["seconds"]


assert set(VARIANTS) >= {case.variant for case in all_cases()}

if __name__ == "__main__":
    sys.exit(main())
