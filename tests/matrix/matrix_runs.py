"""One cell: it trains, saves, goes on from its middle, and is compared with one process that holds the whole model."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from engines import command, environment
from matrix_cells import MODELS, Cell
from models import random_pairs, tiny_model, word_tokenizer
from runs import write_run

# Seconds after which a run is taken to hang.
LIMIT = 240
# Of losses and metrics, relative or absolute; of weights, absolute. Sums over processes are rounded otherwise.
METRICS, WEIGHTS = 2e-4, 2e-5
_RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
dataset_train_split: train[:16]
dataset_test_split: train[16:]
max_steps: 4
global_batch_size: 4
learning_rate: 1e-3
lr_scheduler_type: constant
warmup_steps: 0
adam_epsilon: 1e-4
eval_strategy: steps
eval_steps: 2
save_strategy: steps
save_steps: 2
logging_steps: 1
report_to: none
"""
_TIMED = ("runtime", "per_second", "flos", "time", "memory", "train_loss")


class Failed(Exception):
    """A cell did not end as it must; says how."""


@dataclass(frozen=True)
class Ran:
    """The end of a command."""

    code: int
    said: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"(^|\W)(error|\w+Error):", line)]
        return (errors or lines or ["it said nothing"])[-1][:400]


def write_inputs(folder: Path) -> None:
    """Write the recipe, the model and the pairs that all cells of a suite train on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_run(folder, _RECIPE, random_pairs(22))
    # bitsandbytes stores weights in blocks of 64 numbers of a row.
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder / "wide")
    word_tokenizer().save_pretrained(folder / "wide")


def train(folder: Path, engine: str, settings: dict[str, str], out: str) -> Ran:
    """Give the command in the folder of the inputs."""
    alone = engine == "one process"
    settings = {"per_device_train_batch_size": "4" if alone else "2", "output_dir": out, **settings}
    words = ["recipe.yaml", *(word for name, value in settings.items() for word in (f"--{name}", value))]
    log = folder / f"{out.replace('/', '-')}.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(engine, words),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-9", "-s", str(process.pid)])
            raise Failed(f"it did not end in {LIMIT} s: {Ran(1, log.read_text(errors='replace')).last_line}") from None
    return Ran(code, log.read_text(errors="replace"))


def make_reference(folder: Path, model: str) -> None:
    """Train in one process, with padded rows and without checkpointing."""
    out = reference_of(model)
    if not (folder / out / "seal.json").exists():
        ran = train(folder, "one process", {**MODELS[model], "batch_layout": "padded"}, out)
        if ran.code:
            raise Failed(f"one process: {ran.last_line}")


def reference_of(model: str) -> str:
    return "whole-" + re.sub(r"\W+", "-", model)


def check(cell: Cell, folder: Path, out: str) -> dict[str, Any]:
    """Returns the largest differences of a cell from its reference.

    Raises:
        Failed: it did not end as it must.
    """
    ran = train(folder, cell.kind, cell.settings, out)
    if cell.refused:
        if ran.code == 0:
            raise Failed("it ran, and is listed as refused")
        if not re.search(cell.refused, ran.said):
            raise Failed(f"it was refused with other words: {ran.last_line}")
        return {"refused": cell.refused}
    if ran.code:
        raise Failed(ran.last_line)
    if cell.kind != "one process" and "x 2 processes x" not in ran.said:
        raise Failed("it did not run in two processes")
    whole = folder / reference_of(cell.model)
    found = {"metrics": _metrics(folder / out, whole), "weights": _weights(folder / out, whole)}
    _check_adapters(folder / out)
    kept = folder / f"{out}-on"
    kept.mkdir()
    shutil.copytree(folder / out / "checkpoint-2", kept / "checkpoint-2")
    again = train(folder, cell.kind, cell.settings, kept.name)
    if again.code:
        raise Failed(f"on going on: {again.last_line}")
    if "checkpoint-2." not in again.said:
        raise Failed("it did not go on from its checkpoint")
    return {
        **found,
        "resumed metrics": _metrics(kept, folder / out),
        "resumed weights": _weights(kept, folder / out),
    }


def _log(out: Path) -> list[dict[str, float]]:
    lines = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in line.items() if not any(word in key for word in _TIMED)}
        for line in lines
        if "train_loss" not in line
    ]


def _metrics(out: Path, whole: Path) -> float:
    """Returns the largest difference of a logged number, relative where that is above 1.

    Raises:
        Failed: it is too large, or the logs hold other numbers.
    """
    largest, where = 0.0, ""
    lines, expected = _log(out), _log(whole)
    if [sorted(line) for line in lines] != [sorted(line) for line in expected]:
        raise Failed("the log has other lines")
    for line, other in zip(lines, expected, strict=True):
        for name, value in other.items():
            apart = abs(line[name] - value) / max(1.0, abs(value))
            if math.isnan(apart) or apart > largest:
                largest, where = apart, f"{name} at step {line['step']}: {line[name]:g}, not {value:g}"
    if not largest <= METRICS:
        raise Failed(where)
    return largest


def _weights(out: Path, whole: Path) -> float:
    found, expected = _load(out), _load(whole)
    if found.keys() != expected.keys():
        raise Failed(f"other weights are saved: {sorted(found.keys() ^ expected.keys())[:3]}")
    apart = {name: (found[name].float() - expected[name].float()).abs().max().item() for name in expected}
    name = max(apart, key=lambda each: apart[each])
    if not apart[name] <= WEIGHTS:
        raise Failed(f"{name} is {apart[name]:.1e} from its reference")
    return apart[name]


def _check_adapters(out: Path) -> None:
    """Every adapter must have moved: its second matrix is zero at the start."""
    still = [name for name, weight in _load(out).items() if "lora_B" in name and not weight.abs().max() > 0]
    if still:
        raise Failed(f"{len(still)} adapters have not moved, {still[0]} among them")


def _load(out: Path) -> dict[str, Any]:
    [file] = [*out.glob("adapter_model.safetensors"), *out.glob("model.safetensors")][:1]
    return load_file(file)
