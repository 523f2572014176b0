"""A run that faults are put into: the one command is given again and again, and its end is compared."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from models import random_pairs
from runs import write_run
from simpo_trainer.record.folders import torn_checkpoints
from simpo_trainer.record.seal import broken_files, read_seal

ROOT = Path(__file__).parents[2]
# Seconds after which one start is taken to hang. One takes about ten; a launcher waits for a lock for fifteen.
LIMIT = 120
# Starts after which a run that does not end is a failure.
STARTS = 4
MARK = "SIMPO_FAULT_CASE"

# Ten lines at least are logged, so that 30 steps have a line every 3: a window is open at checkpoints 8 and 16.
# The last step is within an epoch, and its learning rate is not 0: one step too many shows.
_RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
dataset_train_split: train[:40]
dataset_test_split: train[40:]
output_dir: out
max_steps: 30
logging_steps: 3
learning_rate: 1e-3
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
disable_dropout: false
eval_strategy: steps
eval_steps: 8
save_strategy: steps
save_steps: 8
save_total_limit: 2
use_cpu: true
report_to: none
"""
_TIMED = ("runtime", "per_second", "flos", "time", "memory")


@dataclass(frozen=True)
class Variant:
    """Settings of the run, and the options of its command; {port} is a free one."""

    settings: str
    options: tuple[str, ...] = ()

    @property
    def ranks(self) -> tuple[str, ...]:
        """The ranks of its processes that train, as `LOCAL_RANK` says them."""
        return ("0", "1") if self.options else ("",)


VARIANTS = {
    "alone": Variant("per_device_train_batch_size: 4\ndataloader_num_workers: 2\n"),
    "best": Variant("per_device_train_batch_size: 4\nload_best_model_at_end: true\n"),
    "two": Variant(
        "per_device_train_batch_size: 2\n",
        ("--launcher", "ddp", "--num-processes", "2", "--main-process-port", "{port}"),
    ),
}


# The model of a run is made from a seed, which is that of all threads.
_SEEDED = threading.Lock()


class Failed(Exception):
    """A case did not end as it must; says how."""


@dataclass
class Trial:
    """One run in a folder of its own, and what became of it.

    Attributes:
        reference: the output folder of the run without a fault.
        duration: how long that took, in seconds.
        starts: how often the command was given.
        kills: how many SIGKILLs reached a process.
        went_on: for each start the step that it went on from, 0 for the beginning.
        notes: what else is worth telling.
    """

    folder: Path
    variant: str
    reference: Path | None = None
    duration: float = 8.0
    starts: int = 0
    kills: int = 0
    went_on: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (self.folder / "recipe.yaml").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with _SEEDED:
                write_run(self.folder, _RECIPE + VARIANTS[self.variant].settings, random_pairs(48))
            config = self.folder / "model" / "config.json"
            # Dropout makes each step depend on the random state that a checkpoint restores.
            config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.1}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        options = [word.format(port=port) for word in VARIANTS[self.variant].options]
        self.words = [sys.executable, "-m", "simpo_trainer", "train", "recipe.yaml", *options]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def reached(self) -> Path:
        """A file that is there when the fault is."""
        return self.folder / "reached"

    def said(self, start: int = -1) -> str:
        """The output of a start, by default of the last one."""
        return (self.folder / f"start-{self.starts if start < 0 else start}.txt").read_text(errors="replace")

    # ---- Starting and waiting ----

    def start(self, fault: dict[str, Any] | None = None, *overrides: str) -> subprocess.Popen:
        """Give the command, with a fault for one of its processes."""
        self.starts += 1
        self.reached.unlink(missing_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SIMPO_FAULT")
        }
        environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "hook"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            MARK: str(self.folder),
        }
        if fault is not None:
            environment["SIMPO_FAULT"] = json.dumps(
                {"do": "kill", **fault, "reached": str(self.reached), "disk": str(self.out)}
            )
        with (self.folder / f"start-{self.starts}.txt").open("w") as log:
            return subprocess.Popen(
                [*self.words, *overrides],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, process: subprocess.Popen, seconds: float = LIMIT) -> int:
        """Returns the exit status as a shell counts it."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"start {self.starts} did not end in {seconds:.0f} s: {self._last_line()}") from None
        found = re.findall(r"Going on from .*?checkpoint-(\d+)", self.said())
        self.went_on.append(int(found[0]) if found else 0)
        return code if code >= 0 else 128 - code

    def wait_for(self, condition: Any, process: subprocess.Popen, seconds: float = LIMIT) -> None:
        """Wait for something while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None:
                raise Failed(f"start {self.starts} ended too early, with {process.returncode}: {self._last_line()}")
            if time.monotonic() > end:
                raise Failed(f"start {self.starts} did not come as far in {seconds:.0f} s: {self._last_line()}")
            time.sleep(0.02)

    def ranks(self, process: subprocess.Popen) -> dict[str, int]:
        """The process numbers of those that train, by rank; "" is the command itself."""
        found = {"": process.pid}
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                rank, parent = child.environ().get("LOCAL_RANK"), child.ppid()
            except psutil.Error:
                continue
            if rank is not None and parent == process.pid:
                found[rank] = child.pid
        return found

    def end_all(self) -> None:
        """Kill what is left of this trial's processes, also those that left their group."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    process.kill()
            except psutil.Error:
                continue

    def _last_line(self) -> str:
        lines = [line for line in self.said().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    # ---- Ends ----

    def expect(self, code: int, expected: int, said: str = "") -> None:
        """Check the exit status of the last start, and that its output has the pattern."""
        if code != expected:
            raise Failed(f"start {self.starts} ended with {code}, not {expected}: {self._last_line()}")
        if said and not re.search(said, self.said()):
            raise Failed(f"start {self.starts} did not say {said!r}: {self._last_line()}")

    def killed(self, process: subprocess.Popen) -> None:
        """Wait for the end of a command of which a process kills itself."""
        code = self.wait(process)
        if not self.reached.exists():
            raise Failed(f"the point was not reached; start {self.starts} ended with {code}: {self._last_line()}")
        self.kills += 1
        if code == 0:
            self.notes.append("the command had nothing left to do when it was killed")

    def finish(self, *overrides: str) -> None:
        """Give the same command until it ends with 0: once must do, as nothing is wrong any more."""
        self.expect(self.wait(self.start(None, *overrides)), 0)

    def compare(self, *, log: bool = True, names: bool = True) -> None:
        """Compare the end with that of the run without a fault: weights bit by bit, log line by line, files by name."""
        if self.reference is None:
            return
        found, expected = (load_file(folder / "model.safetensors") for folder in (self.out, self.reference))
        if found.keys() != expected.keys():
            raise Failed("the final model has other weights")
        if differ := [name for name in expected if not (found[name] == expected[name]).all()]:
            raise Failed(f"{len(differ)} of {len(expected)} final weights differ, {differ[0]} among them")
        if log:
            self._compare_logs()
        if broken := broken_files(self.out):
            raise Failed(f"the finished run is not whole: {broken[0]}")
        if not (read_seal(self.out) or {}).get("finished"):
            raise Failed("the run does not count as finished")
        if names:
            self._compare_names()

    def _compare_logs(self) -> None:
        lines, expected = log_of(self.out), log_of(self.reference)
        for own, other in zip(lines, expected, strict=False):
            if own != other:
                names = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
                raise Failed(f"the log differs at step {other.get('step')} in {', '.join(names[:4])}")
        if len(lines) != len(expected):
            raise Failed(f"the log has {len(lines)} lines, not {len(expected)}")

    def _compare_names(self) -> None:
        """A run killed behind its last step trains nothing more, and keeps the checkpoint that it went on from."""
        names, expected = ({path.name for path in folder.iterdir()} for folder in (self.out, self.reference))
        if missing := expected - names - {"train_results.json"}:
            raise Failed(f"missing at the end: {', '.join(sorted(missing))}")
        more = sorted(names - expected)
        if strange := [name for name in more if not re.fullmatch(r"(_earlier-)?checkpoint-\d+|ballast", name)]:
            raise Failed(f"left at the end: {', '.join(strange)}")
        torn = [folder.name for folder in torn_checkpoints(self.out)]
        if left := [name + (" (open, counts for nothing)" if name in torn else "") for name in more]:
            self.notes.append(f"left: {', '.join(left)}")


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without times; without the mean loss of a training, which is of its own steps alone."""
    lines = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in line.items() if not any(word in key for word in _TIMED)}
        for line in lines
        if "train_loss" not in line
    ]


def make_reference(folder: Path, variant: str) -> float:
    """Make the run without a fault, and return how long it took, in seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    trial, began = Trial(folder, variant), time.monotonic()
    try:
        trial.finish()
    finally:
        trial.end_all()
    return time.monotonic() - began


def send(pid: int, number: int) -> None:
    """Signal a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
