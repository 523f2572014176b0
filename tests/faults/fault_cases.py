"""The cases: one fault each, put into one run, and what must become of it."""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import psutil

import fault_points as points
from fault_runs import SIGNALS, VARIANTS, Failed, Trial, send

# A random kill falls into the time that the run without a fault takes; this one is for machines of any speed.
_SEED = 20
_DISK = 12_000_000


@dataclass(frozen=True)
class Case:
    """A fault: its kind, the variant of the run, and what is done to a trial of it."""

    kind: str
    variant: str
    what: str
    do: Callable[[Trial], None]

    @property
    def name(self) -> str:
        return f"{self.kind} / {self.variant} / {self.what}"


def all_cases() -> list[Case]:
    """Every case, in the order in which they are run."""
    kinds = (_chosen_kills, _random_kills, _signals, _damaged, _full_disks, _two_runs, _changed_keys, _suspended)
    return [case for kind in kinds for case in kind()]


def _who(rank: str) -> str:
    return f"rank {rank}: " if rank else ""


# ---- Kills ----


def _chosen_kills() -> Iterator[Case]:
    first, later, last = points.FIRST_CHECKPOINT, points.LATER_CHECKPOINT, points.LAST_CHECKPOINT
    alone = (points.EARLY, points.TRAINING, points.inside(first), later, points.ROTATION, points.END)
    found = [("alone", "", group) for group in alone]
    # With the best model loaded at the end, the last checkpoint stays.
    kept = {what: point for what, point in points.END.items() if "removal" not in what}
    found += [("best", "", points.inside(last)), ("best", "", kept)]
    found += [("two", "0", group) for group in (points.inside(later), points.ROTATION, points.END)]
    found += [("two", "1", points.OF_EVERY_RANK)]
    for variant, rank, group in found:
        for what, point in group.items():
            yield Case("kill", variant, _who(rank) + what, killed(point, rank))
    for what, point in points.OF_LAUNCHER.items():
        yield Case("kill", "two", f"launcher: {what}", _launcher_killed(point))


def killed(point: dict[str, Any], rank: str = "") -> Callable[[Trial], None]:
    """A process kills itself at a point; the same command goes on."""

    def do(trial: Trial) -> None:
        trial.killed(trial.start({**point, "rank": rank}))
        trial.finish()
        trial.compare()

    return do


def _launcher_killed(point: dict[str, Any]) -> Callable[[Trial], None]:
    """The next start follows at once, while the processes of the first are only ending."""

    def do(trial: Trial) -> None:
        launcher = trial.start({**point, "rank": "0", "do": "pause"})
        trial.wait_for(trial.reached.exists, launcher)
        send(launcher.pid, SIGKILL)
        trial.killed(launcher)
        trial.finish()
        trial.compare()

    return do


def _random_kills() -> Iterator[Case]:
    """Two or three in a row for each run; half of the times are in the training, which is the shorter part."""
    for variant, count in (("alone", 8), ("best", 3), ("two", 6)):
        for number in range(count):
            yield Case("random kills", variant, f"number {number + 1}", _killed_at_random(f"{variant}-{number}"))


def _killed_at_random(seed: str) -> Callable[[Trial], None]:
    def do(trial: Trial) -> None:
        chance = random.Random(f"{_SEED}-{seed}")
        for _ in range(chance.choice((2, 3))):
            in_training, part = chance.random() < 0.5, chance.random()
            victim = chance.choice(("", *VARIANTS[trial.variant].ranks)) if trial.variant == "two" else ""
            process = trial.start()
            if in_training:
                _wait_or_end(lambda: "step 1/30" in trial.said(), process)
                time.sleep(part * 1.5)
            else:
                _wait_or_end(lambda: False, process, part * trial.duration)
            if process.poll() is None:
                try:
                    target = trial.ranks(process).get(victim, process.pid)
                    send(target, SIGKILL)
                    trial.notes.append(f"kill of {'rank ' + victim if victim else 'the command'}")
                    trial.kills += 1
                except psutil.Error:
                    pass
            trial.wait(process)
        trial.finish()
        trial.compare()

    return do


def _wait_or_end(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.01)


# ---- Signals ----

_STEP = {"at": "transformers.trainer:Trainer.training_step", "call": 12}


def _signals() -> Iterator[Case]:
    for number in SIGNALS:
        for variant, rank in (("alone", ""), ("two", "0"), ("two", "1"), ("two", "")):
            who = "launcher: " if variant == "two" and not rank else _who(rank)
            yield Case("signal", variant, f"{who}{number.name} in a step", _signalled(number, _STEP, rank, 12))
    elsewhere = {
        "while the data is loaded": (points.EARLY["while the data is loaded"], 0),
        "in an evaluation": (points.TRAINING["the first evaluation"], 8),
        "in a checkpoint": (points.LATER_CHECKPOINT["checkpoint-24, before the optimizer"], 24),
        "before the final save": (points.END["before the final save"], 30),
        "after the end seal": (points.END["after the end seal"], None),
    }
    for what, (point, step) in elsewhere.items():
        for number in SIGNALS[:2]:
            yield Case("signal", "alone", f"{number.name} {what}", _signalled(number, point, "", step))


def _signalled(number: int, point: dict[str, Any], rank: str, step: int | None) -> Callable[[Trial], None]:
    """The status is 128 and the number; the next start goes on from `step`, None where the run was finished."""

    def do(trial: Trial) -> None:
        paused = rank or VARIANTS[trial.variant].ranks[0]
        process = trial.start({**point, "rank": paused, "do": "pause"})
        trial.wait_for(trial.reached.exists, process)
        send(trial.ranks(process)[rank], number)
        time.sleep(0.5)
        trial.reached.unlink()
        trial.expect(trial.wait(process), 128 + number)
        trial.finish()
        if step is None and "This run is finished" not in trial.said():
            raise Failed("the run did not count as finished after the signal")
        # Several processes agree on the stop behind the next step, where one of them has begun it.
        allowed = () if step is None else (step, step + 1) if trial.variant == "two" else (step,)
        if step is not None and trial.went_on[-1] not in allowed:
            raise Failed(f"it went on from step {trial.went_on[-1]}, not {step}")
        trial.compare()

    return do


# ---- Damaged checkpoints ----

_FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin"),
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": _cut,
    "empty": _empty,
    "removed": Path.unlink,
    "one byte changed": _change,
}


def _damaged() -> Iterator[Case]:
    of_processes = [name for name in _FILES if name.startswith(("model", "optimizer", "rng_state"))]
    for variant, files in (("alone", _FILES), ("two", of_processes)):
        for pattern in files:
            for damage, do in _DAMAGES.items():
                yield Case("damaged file", variant, f"{pattern.replace('*', '')} {damage}", damaged(pattern, do))
    for damage in ("cut", "empty", "one byte changed"):
        yield Case("damaged file", "alone", f"seal.json {damage}", damaged("seal.json", _DAMAGES[damage]))


def damaged(pattern: str, damage: Callable[[Path], None]) -> Callable[[Trial], None]:
    """Of checkpoints 24 and 30 the later one has a damaged file: it is named, and the earlier one is gone on from."""

    def do(trial: Trial) -> None:
        ended = points.END["before the final save"]
        trial.killed(trial.start({**ended, "rank": VARIANTS[trial.variant].ranks[0]}))
        file = sorted((trial.out / "checkpoint-30").glob(pattern))[-1]
        damage(file)
        trial.finish()
        lines = [line for line in trial.said().splitlines() if "checkpoint-30" in line]
        named = [line for line in lines if file.name in line or (pattern == "seal.json" and "not saved to" in line)]
        if trial.went_on[-1] != 24:
            raise Failed(f"it went on from step {trial.went_on[-1]}, not 24")
        trial.compare()
        if not named:
            raise Failed(f"equal, but no line names {file.name}")

    return do


# ---- A full disk ----


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        raise Skipped("no file system can be mounted here")
    try:
        yield
        # The end is looked at when the disk is gone.
        shutil.copytree(folder, folder.with_name("kept"))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()
    folder.with_name("kept").rename(folder)


class Skipped(Exception):
    """A case cannot be run on this machine; says why."""


def _full_disks() -> Iterator[Case]:
    begun = "simpo_trainer.train.full_disk:begin_checkpoint"
    optimizer = points.LATER_CHECKPOINT["checkpoint-24, before the optimizer"]
    full = {
        "at the first checkpoint": {"at": begun, "when": "after", "left": 0},
        "in the weights of the first checkpoint": {"at": begun, "when": "after", "left": 60_000},
        "at a later checkpoint": {"at": begun, "call": 3, "when": "after", "left": 0},
        "in the optimizer of a later checkpoint": {**optimizer, "left": 50_000},
        "at its seal": {**points.LATER_CHECKPOINT["checkpoint-24, before the seal"], "left": 0},
    }
    for variant in ("alone", "two"):
        for what, point in full.items():
            yield Case("full disk", variant, what, _full(point))
        yield Case("full disk", variant, "at the final model", _full_at_end)


def _full(point: dict[str, Any]) -> Callable[[Trial], None]:
    def do(trial: Trial) -> None:
        with _small_disk(trial.out):
            fault = {**point, "rank": VARIANTS[trial.variant].ranks[0], "do": "fill"}
            trial.expect(trial.wait(trial.start(fault)), 1, r"checkpoint-\d+ could not be saved")
            (trial.out / "ballast").unlink()
            trial.finish()
        trial.compare()

    return do


def _full_at_end(trial: Trial) -> None:
    """The run waits for room, and a signal ends the waiting."""
    with _small_disk(trial.out):
        fault = {**points.END["before the final save"], "rank": VARIANTS[trial.variant].ranks[0], "do": "fill"}
        process = trial.start(fault)
        trial.wait_for(lambda: "The trained model has no room" in trial.said(), process)
        send(process.pid, SIGNALS[0])
        trial.expect(trial.wait(process), 128 + SIGNALS[0], "Stopped while waiting for room")
        (trial.out / "ballast").unlink()
        trial.finish()
    trial.compare()


# ---- Two runs, one folder ----


def _two_runs() -> Iterator[Case]:
    for variant in ("alone", "two"):
        yield Case("two runs", variant, "the second is refused", _second_refused)
        yield Case("two runs", variant, "the second waits for the end", _second_waits)


def _second_refused(trial: Trial) -> None:
    rank = VARIANTS[trial.variant].ranks[0]
    first = trial.start({**_STEP, "rank": rank, "do": "pause"})
    trial.wait_for(trial.reached.exists, first)
    kept = trial.reached.rename(trial.folder / "kept")  # a start removes it, and the first would go on
    second = _beside(trial, kept)
    trial.expect(trial.wait(second), 1, "is in use by another run")
    trial.reached.unlink()
    trial.expect(trial.wait(first), 0)
    trial.compare()


def _second_waits(trial: Trial) -> None:
    rank = VARIANTS[trial.variant].ranks[0]
    first = trial.start({**_STEP, "rank": rank, "do": "pause"})
    trial.wait_for(trial.reached.exists, first)
    kept = trial.reached.rename(trial.folder / "kept")
    second = _beside(trial, kept)
    trial.wait_for(lambda: "Waiting for its end" in trial.said(), second)
    trial.reached.unlink()
    trial.expect(trial.wait(second), 0, "This run is finished")
    trial.expect(trial.wait(first), 0)
    trial.compare()


def _beside(trial: Trial, kept: Path) -> subprocess.Popen:
    """Start the second run, on a port of its own, while the first one stays paused."""
    words, trial.words = trial.words, Trial(trial.folder, trial.variant).words
    second = trial.start()
    trial.words = words
    kept.rename(trial.reached)
    return second


# ---- Changed keys ----

_HARMLESS = {
    "run_name": "another",
    "logging_steps": "2",
    "logging_first_step": "true",
    "save_steps": "16",
    "save_total_limit": "1",
    "eval_steps": "16",
    "per_device_eval_batch_size": "2",
    "dataloader_num_workers": "1",
    "eval_strategy": "no",
}
# The log is of other steps then, or of other batches, whose sums are rounded otherwise.
_OTHER_LOG = ("logging_steps", "eval_steps", "eval_strategy", "per_device_eval_batch_size")
_CHANGING = {
    "learning_rate": ("2e-3", "learning_rate was 0.001 and is 0.002"),
    "beta": ("3", "beta was 2.0 and is 3.0"),
    "loss_type": ("hinge", "loss_type was .*sigmoid.* and is .*hinge"),
    "max_steps": ("40", "max_steps was 30 and is 40"),
    "seed": ("7", "seed was 42 and is 7"),
    "weight_decay": ("0.1", r"weight_decay was 0\.0 and is 0\.1"),
    "max_length": ("64", "max_length was .* and is 64"),
    "per_device_train_batch_size": ("1", "pairs of a step was 4 and is "),
    "dataset_train_split": ("train[:39]", "the training pairs are not the same"),
    "use_peft": ("true", "adapter was null"),
}


def _changed_keys() -> Iterator[Case]:
    for key, value in _HARMLESS.items():
        yield Case("changed key", "alone", f"{key}, harmless", _harmless(key, value))
    for key, (value, said) in _CHANGING.items():
        yield Case("changed key", "alone", f"{key}, refused", _refused(key, value, said))
    yield Case("changed key", "two", "beta, refused", _refused("beta", *_CHANGING["beta"]))


def _stopped(trial: Trial) -> None:
    trial.killed(trial.start({**_STEP, "call": 20, "rank": VARIANTS[trial.variant].ranks[0]}))


def _harmless(key: str, value: str) -> Callable[[Trial], None]:
    def do(trial: Trial) -> None:
        _stopped(trial)
        trial.finish(f"--{key}", value)
        if trial.went_on[-1] != 16:
            raise Failed(f"it went on from step {trial.went_on[-1]}, not 16")
        trial.compare(log=key not in _OTHER_LOG, names=not key.startswith(("save_", "eval_strategy")))

    return do


def _refused(key: str, value: str, said: str) -> Callable[[Trial], None]:
    def do(trial: Trial) -> None:
        _stopped(trial)
        before = _content(trial.out)
        trial.expect(trial.wait(trial.start(None, f"--{key}", value)), 1, said)
        if _content(trial.out) != before:
            raise Failed("the refused run has changed files")
        trial.finish()
        trial.compare()

    return do


def _content(out: Path) -> dict[str, int]:
    return {
        file.relative_to(out).as_posix(): file.stat().st_mtime_ns
        for file in out.rglob("*")
        if file.is_file() and not re.match(r"_run\.lock", file.name)
    }


# ---- Suspended processes ----


def _suspended() -> Iterator[Case]:
    for variant, rank in (("alone", ""), ("two", "0"), ("two", "1"), ("two", "")):
        who = "launcher: " if variant == "two" and not rank else _who(rank)
        yield Case("suspended", variant, f"{who}for 6 s in a step", _suspended_for(6, rank))


def _suspended_for(seconds: float, rank: str) -> Callable[[Trial], None]:
    def do(trial: Trial) -> None:
        process = trial.start({**_STEP, "rank": rank or VARIANTS[trial.variant].ranks[0], "do": "pause"})
        trial.wait_for(trial.reached.exists, process)
        target = trial.ranks(process)[rank]
        send(target, SIGSTOP)
        trial.reached.unlink()
        time.sleep(seconds)
        send(target, SIGCONT)
        trial.expect(trial.wait(process), 0)
        trial.compare()

    return do
