"""Two real processes over gloo: what is logged after a resume, how they stop, and every way to start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distributed_worker import train_once
from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.record.seal import broken_files, read_seal
from simpo_trainer.run.one_run import run

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def _environment() -> dict[str, str]:
    # What a launcher of the test run itself may have set does not concern these processes.
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return inherited | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("processes", [2, 1])
def test_a_resume_goes_on_with_the_open_logging_window(tmp_path, processes):
    """Two processes save in the middle of a window; as many, or one with the same global batch, log its line."""
    settings = {"max_steps": 20, "logging_steps": 2, "eval_strategy": "no", "learning_rate": 1e-3, "use_cpu": True}
    whole, again = tmp_path / "whole", tmp_path / "again"
    saving = {"save_strategy": "steps", "save_steps": 9, "per_device_train_batch_size": 2}
    going_on = {"resume": str(whole / "checkpoint-9"), "per_device_train_batch_size": 4 // processes}
    runs = [{"folder": str(whole), "num_rows": 21, "settings": settings | saving}]
    resumed = {"folder": str(again), "num_rows": 21, "settings": settings | going_on}
    (tmp_path / "runs.json").write_text(json.dumps(runs + [resumed] * (processes == 2)))
    worker = str(TESTS / "support" / "distributed_worker.py")
    command = [*TORCHRUN, worker, "2", str(tmp_path / "runs.json")]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    if processes == 1:
        train_once(str(again), 1, 21, resumed["settings"])
    logs = [
        [entry for entry in json.loads((folder / "seen.json").read_text())["history"] if "loss" in entry]
        for folder in (whole, again)
    ]
    assert [entry["step"] for entry in logs[0]] == [1, *range(2, 21, 2)]
    if processes == 2:
        assert logs[0] == logs[1]
    for first, second in zip(*logs, strict=True):
        assert second == pytest.approx(first, rel=2e-4, abs=2e-5)


def test_interrupted_processes_stop_at_the_same_step(tmp_path):
    """Ctrl-C reaches the processes at different moments; all stop after one step, with one checkpoint."""
    settings = {"per_device_train_batch_size": 1, "max_steps": 2000, "disable_tqdm": True}
    (tmp_path / "runs.json").write_text(json.dumps([{"folder": str(tmp_path), "num_rows": 8, "settings": settings}]))
    worker = [str(TESTS / "support" / "distributed_worker.py"), "2", str(tmp_path / "runs.json")]
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        launcher = subprocess.Popen([*TORCHRUN, *worker], env=_environment(), stdout=stream, stderr=stream)
        try:
            _wait_for(lambda: "step 20/" in log.read_text(), launcher)
            ranks = _children(launcher.pid)
            assert len(ranks) == 2
            for rank in ranks:
                os.kill(rank, signal.SIGINT)
                time.sleep(0.05)
            assert launcher.wait(timeout=120) == 0, log.read_text()[-3000:]
        finally:
            launcher.kill()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert read_seal(checkpoints[0])["processes"] == 2 and broken_files(checkpoints[0]) == []
    state = json.loads((checkpoints[0] / "trainer_state.json").read_text())
    assert 20 <= state["global_step"] < 2000


def _wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the processes ended early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def _children(parent: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in done.stdout.split()]


RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: unset
learning_rate: 1e-3
num_train_epochs: 2
logging_steps: 1
save_strategy: "no"
use_cpu: true
"""
MODULE = ("-m", "accelerate.commands.launch")
SCRIPT = str(TESTS.parent / "scripts" / "run_simpo.py")
DOORS = {
    "simpo": ([sys.executable, "-c", "from simpo_trainer.cli import main; main()", "train"], 4, 1),
    "accelerate-2": ([sys.executable, *MODULE, "--multi_gpu", "--num_processes", "2", SCRIPT], 2, 1),
    "torchrun-2": ([*TORCHRUN, SCRIPT], 1, 2),
}


def test_every_door_leads_to_the_same_run(tmp_path, monkeypatch):
    """The command line, both launchers and Python: same losses and weights for the same global batch of 4 pairs."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps(as_text(pair)) for pair in random_pairs(14)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    split = {"per_device_train_batch_size": 4}
    run(load_recipe("recipe.yaml", {"output_dir": "python", **split}))
    losses, weights = _outcome(tmp_path / "python")
    assert len(losses) >= 6
    for door, (command, batch_size, accumulation) in DOORS.items():
        overrides = ["--output_dir", door, "--per_device_train_batch_size", str(batch_size)]
        overrides += ["--gradient_accumulation_steps", str(accumulation)]
        done = subprocess.run(
            [*command, "recipe.yaml", *overrides], env=_environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        processes = 2 if door.endswith("-2") else 1
        assert f"x {processes} process" in done.stderr
        found_losses, found_weights = _outcome(tmp_path / door)
        assert found_losses == pytest.approx(losses, rel=2e-4), door
        for name, weight in weights.items():
            torch.testing.assert_close(found_weights[name], weight, rtol=1e-4, atol=1e-5)


def _outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps, and the weights as `from_pretrained` loads them."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    return [entry["loss"] for entry in history if "loss" in entry], model.state_dict()


def test_a_loss_that_breaks_in_one_process_reaches_no_weight_of_another(tmp_path):
    """Its gradient is in the sum that both have, so both stop before the step."""
    worker = TESTS / "support" / "diverging_worker.py"
    done = subprocess.run(
        [*TORCHRUN, str(worker), str(tmp_path)], env=_environment(), capture_output=True, text=True, timeout=300
    )
    seen = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert done.returncode == 0 and all(each["unchanged"] for each in seen)
    own, other = sorted((each["said"] for each in seen), key=lambda said: "of another process" in said)
    assert own.startswith("The loss is inf at optimiser step 1, in row 3 (")
    assert other.startswith("The loss of another process is not finite at optimiser step 1;")
