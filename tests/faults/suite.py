"""Put every fault into runs, and write what became of them: `make test-faults`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fault_cases import Case, Skipped, all_cases  # noqa: E402
from fault_runs import SIGNALS, Failed, Trial, make_reference  # noqa: E402
from fault_table import write_table  # noqa: E402
from suites import run_suite  # noqa: E402

TABLE = Path(__file__).parent / "results.md"


def _prepare(left: Sequence[Case], folder: Path, commit: str) -> Callable[[Case, Path], dict[str, Any]]:
    """Make the runs without a fault that the cases are compared with."""
    whole = {variant: _reference(variant, folder, commit) for variant in dict.fromkeys(case.variant for case in left)}
    return lambda case, place: _run(case, place, *whole[case.variant])


def _run(case: Case, place: Path, reference: Path, duration: float) -> dict[str, Any]:
    if (disk := place / "out").is_mount():  # of a suite that was killed
        subprocess.run(["umount", "-l", str(disk)], check=True)
    shutil.rmtree(place, ignore_errors=True)
    trial = Trial(place, case.variant, reference / "out", duration)
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


def _write(results: Sequence[dict[str, Any]], commit: str) -> Path:
    write_table(TABLE, results, commit)
    return TABLE


def _heed_signals() -> None:
    """Let the runs heed the signals that this process was started to ignore, as in the background of a shell."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if __name__ == "__main__":
    _heed_signals()
    title = "Put every fault into runs, and compare their ends with that of a run without one."
    sys.exit(run_suite(title, all_cases(), ROOT / "runs" / "faults", prepare=_prepare, write=_write))
