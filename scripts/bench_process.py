"""A row of a benchmark in a process of its own, which is ended with its children when its time is over."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SCRIPTS = Path(__file__).parent
RATE = "rate"
# The seconds after which a worker ends itself if nobody is left who would do it.
_GRACE = 5


def measured(row: str, job: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """The result of a worker, or what stopped it: a row that runs out of memory must not end the others.

    Args:
        row: a row of `bench_worker.ROWS`, or `RATE`.
        job: what the worker reads.
        seconds: the time after which the worker is ended; without it, never.

    Returns:
        What the worker wrote; or `error`, with `late` where its time was over.
    """
    script = _SCRIPTS / ("bench_rate.py" if row == RATE else "bench_worker.py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own_end = None if seconds is None else round(seconds + _GRACE)
        (folder / "job.json").write_text(json.dumps(job | {"own_end": own_end}))
        status, said = run_within([*_launch(job), str(script), name, row], seconds, folder / "said.txt")
        result = folder / "result.json"
        if status == 0 and result.exists():
            return json.loads(result.read_text())
    if status is None:
        return {"error": f"ended after {seconds:.0f} s, which was its limit", "late": True}
    if status < 0:
        return {"error": f"killed by signal {-status}, as happens when memory runs out"}
    return {"error": (said.strip().splitlines() or ["no message"])[-1]}


def _launch(job: dict[str, Any]) -> list[str]:
    processes = job.get("processes", 1)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(several if processes > 1 else [])]


def run_within(command: list[str], seconds: float | None, said: Path) -> tuple[int | None, str]:
    """Run a command and wait for it, but no longer than `seconds`; its output goes to the file `said`.

    Returns:
        The exit status, None where the time was over, and the output. No process of the command is left, also not
        where this one is interrupted.
    """
    with said.open("w") as file:
        # A session of its own, so that its children can be ended with it.
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    return status, said.read_text(errors="replace")


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended, with all its children
    process.wait()


def end_by_itself(job: dict[str, Any]) -> None:
    """In a worker: be ended by the kernel some seconds after the limit, should the one who set it have been killed."""
    if job.get("own_end"):
        signal.alarm(job["own_end"])
