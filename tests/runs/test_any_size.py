"""One answer at any size: losses, metrics and weights of one process, under every engine and number of processes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed_worker import train_once
from engines import command, environment, missing
from models import random_ranked

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"
TIMINGS = ("runtime", "per_second", "epoch", "total_flos")
# Of each run: rows, pairs of a micro-batch of one process, accumulation of one process, and settings. More processes
# have a smaller micro-batch each, and where that is one pair, fewer steps of accumulation.
RUNS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "uneven-end": (21, 4, 2, {"sft_weight": 0.2, "sft_reduction": "token", "batch_layout": "padded"}),
    "more-accumulation": (21, 8, 1, {"sft_weight": 0.2, "batch_layout": "shared_prefix", "accumulates": 2}),
    "processes-without-pairs": (17, 8, 1, {"loss_type": "hinge"}),
    "stream": (21, 4, 2, {"stream": True, "max_steps": 4, "max_length": 64, "max_prompt_length": 32}),
    "ranked": (21, 4, 2, {"ranked": True, "sft_weight": 0.2, "margin_scale": 0.5, "batch_layout": "packed"}),
    "lora-checkpointing": (13, 4, 1, {"lora": True, "gradient_checkpointing": True}),
    # The balance of experts depends on what a micro-batch holds: here one pair, whatever the number of processes.
    "experts": (13, 1, 4, {"experts": True}),
}
SIZES = [("DDP", 4), ("FSDP2", 4), ("ZeRO-2", 4), ("ZeRO-3", 2)]


def run_of(folder: Path, name: str, processes: int) -> dict[str, Any]:
    """Arguments of the worker for a run by so many processes."""
    num_rows, batch_size, accumulation, settings = RUNS[name]
    accumulates = settings.get("accumulates", 1) if processes > 1 else 1
    each = max(1, batch_size // processes // accumulates)
    split = {
        "per_device_train_batch_size": each,
        "per_device_eval_batch_size": min(3, batch_size),
        "gradient_accumulation_steps": batch_size * accumulation // (each * processes),
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-4,
    }
    kept = {key: value for key, value in settings.items() if key != "accumulates"}
    return {"folder": str(folder / name), "num_rows": num_rows, "settings": kept | split}


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """All runs by this process."""
    folder = tmp_path_factory.mktemp("one")
    for name in RUNS:
        train_once(world_size=1, **run_of(folder, name, 1))
    return folder


@pytest.mark.parametrize(("engine", "processes"), SIZES)
def test_the_answer_is_that_of_one_process(tmp_path, by_one, engine, processes):
    """All runs are made by the same processes in turn, which saves their start."""
    if package := missing(engine):
        pytest.skip(f"{package} is not installed: make install-scale")
    (tmp_path / "runs.json").write_text(json.dumps([run_of(tmp_path, name, processes) for name in RUNS]))
    words = command(engine, [str(processes), str(tmp_path / "runs.json")], processes, WORKER)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in RUNS:
        assert_same(name, by_one / name, tmp_path / name)


def assert_same(run: str, one: Path, other: Path) -> None:
    records = [json.loads((folder / "run_manifest.json").read_text()) for folder in (one, other)]
    for measured in ("start", "end"):
        assert records[1][measured] == pytest.approx(records[0][measured], rel=2e-4, abs=2e-5), run
    assert records[1]["measured_rows"] == records[0]["measured_rows"]
    histories = [json.loads((folder / "seen.json").read_text())["history"] for folder in (one, other)]
    assert len(histories[0]) == len(histories[1]), run
    for first, second in zip(*histories, strict=True):
        assert first.keys() == second.keys(), run
        for name in first:
            if not any(timing in name for timing in TIMINGS):
                # Sums in another order: float32 rounding, carried through a few optimiser steps.
                found, expected = torch.tensor(second[name]), torch.tensor(first[name])
                torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5, msg=f"{run}: {name} differs")
    found, expected = weights(other), weights(one)
    assert found.keys() == expected.keys(), run
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=lambda text: f"{run}: {name}: {text}")  # noqa: B023


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(file)


def test_every_pair_is_evaluated_once(by_one):
    for name, (num_rows, _, _, settings) in RUNS.items():
        counted = sum(len(row["chosen"]) for row in random_ranked(num_rows)) if "ranked" in settings else num_rows
        history = json.loads((by_one / name / "seen.json").read_text())["history"]
        evaluated = [entry for entry in history if "eval_predictions" in entry]
        assert evaluated and all(len(entry["eval_predictions"]) == counted for entry in evaluated)
