"""A full disk costs no training: a run is refused before it, or its last whole checkpoint stands, or its model waits.

The disk is a real one, a file system in memory of a few megabytes; where none can be mounted these tests are skipped.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from models import random_pairs
from runs import make_trainer, write_run
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.record.folders import checkpoints, torn_checkpoints
from simpo_trainer.record.full_disk import is_disk_full
from simpo_trainer.record.seal import broken_files, is_open, remove_checkpoint, seal_checkpoint
from simpo_trainer.run import run
from simpo_trainer.train import full_disk, room, saving

ROWS = random_pairs(24)
SETTINGS = {"optim": "adamw_torch", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
SIZE = 12_000_000
TESTS = Path(__file__).parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, left):
    """Put a ballast on the disk, so that so many bytes are left."""
    with (disk / "ballast").open("wb") as file:
        while (free := shutil.disk_usage(disk).free) > left:
            file.write(bytes(min(free - left, 1 << 20)))
            file.flush()


def free_again(disk):
    (disk / "ballast").unlink()


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.do()


def test_a_run_that_could_not_be_saved_is_refused_and_changes_nothing(disk):
    out = disk / "out"
    out.mkdir()
    fill(disk, 1_200_000)
    (out / "seal.json").write_text("{}")
    trainer = make_trainer(out, ROWS, **SETTINGS)
    with pytest.raises(SimPOError, match=r"disk/out has 1\.\d MB free, and needed are 2\.\d MB .*or set output_dir to"):
        trainer.train()
    assert trainer.state.global_step == 0 and os.listdir(out) == ["seal.json"]


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_total_limit": 1}, 2),
        ({"save_total_limit": 2}, 3),
        ({"save_total_limit": 9}, 3),
        ({"save_total_limit": 1, "max_steps": 2}, 1),
        ({"save_steps": 4}, 2),
        ({"save_only_model": True}, 3),
        ({"optim": "sgd"}, 3),
    ],
)
def test_the_room_of_a_run_is_that_of_its_checkpoints_at_a_time(tmp_path, monkeypatch, caplog, settings, written):
    """Byte by byte: with one less than is needed there is a warning, or for the first checkpoint an error."""
    trainer = make_trainer(tmp_path, ROWS, **{**SETTINGS, **settings})
    trainer.create_optimizer()
    trainer.state.max_steps, trainer.state.save_steps = trainer.args.max_steps, trainer.args.save_steps
    weights = sum(weight.numel() * 4 for weight in trainer.model.parameters())
    with_moments = "optim" not in settings and "save_only_model" not in settings
    one = weights * (3 if with_moments else 1) + room.SMALL_FILES
    model = weights + room.SMALL_FILES

    def problem(free):
        usage = type("Usage", (), {"total": 10**9, "free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        caplog.clear()
        return trainer.room.start_problem()

    assert not problem(written * one + model) and not caplog.text
    least = problem(min(written, 1) * one + model - 1)
    assert least and ("save_only_model: true" in least) == (bool(written) and with_moments)
    if written > 1:
        assert not problem(written * one + model - 1) and f"{written - 1} of the {written} checkpoints" in caplog.text


def test_a_disk_that_tells_nothing_is_not_judged(tmp_path, monkeypatch):
    usage = type("Usage", (), {"total": 0, "free": 0})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert room.free_bytes(tmp_path / "not" / "there") is None
    make_trainer(tmp_path, ROWS, **{**SETTINGS, "max_steps": 1}).train()


def test_an_adapter_needs_room_for_itself_alone(tmp_path):
    arguments = {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])}
    trainer = make_trainer(tmp_path, ROWS, arguments=arguments, **SETTINGS)
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    assert trainer.room.of_model() == 4 * trained + room.SMALL_FILES


def test_surplus_checkpoints_go_first_where_a_new_one_has_no_room(disk, monkeypatch):
    """Of two that are kept the older goes before the third is written, and the newer one stays until it is sealed."""
    trainer = make_trainer(disk / "out", ROWS, **SETTINGS, save_total_limit=2)
    seen = []
    trainer.add_callback(At(6, lambda: fill(disk, 300_000)))
    real = full_disk.begin_checkpoint

    def begin(folder):
        seen.append([each.name for each in checkpoints(folder.parent)])
        real(folder)

    monkeypatch.setattr(full_disk, "begin_checkpoint", begin)
    trainer.train()
    assert seen == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [folder.name for folder in checkpoints(disk / "out")] == ["checkpoint-4", "checkpoint-6"]


RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
dataset_train_split: train[:20]
dataset_test_split: train[20:]
output_dir: out
logging_steps: 1
max_steps: 7
per_device_train_batch_size: 4
learning_rate: 1e-3
save_steps: 3
save_total_limit: 1
use_cpu: true
report_to: none
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The one command that starts a run and goes on with it."""
    write_run(tmp_path, RECIPE, ROWS)
    monkeypatch.chdir(tmp_path)

    def command(*overrides):
        return run(load_recipe("recipe.yaml", ["--resume_from_checkpoint", "auto", *overrides]))

    return command


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 60_000, 200_000], ids=["nothing left", "in the weights", "in the optimiser"])
def test_full_while_a_checkpoint_is_written_the_same_command_goes_on_to_the_same_end(
    disk, command, tmp_path, monkeypatch, left
):
    command()
    with monkeypatch.context() as patch:
        real = full_disk.begin_checkpoint

        def begin(folder):
            real(folder)
            if folder.name == "checkpoint-6":
                fill(disk, left)

        patch.setattr(full_disk, "begin_checkpoint", begin)
        with pytest.raises(SimPOError, match="checkpoint-6 could not be saved.*disk/out.*checkpoint-3, stands") as told:
            command("--output_dir", "disk/out")
    assert "MB are free" in str(told.value) or "kB are free" in str(told.value)
    out = disk / "out"
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not broken_files(out / "checkpoint-3")
    free_again(disk)
    command("--output_dir", "disk/out")
    found, expected = weights(out), weights(tmp_path / "out")
    assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize(
    ("stopped", "message"),
    [
        (False, "^checkpoint-4 could not be saved: too little room in .*/disk/out; needed are .*checkpoint-2, stands"),
        (True, "^The run was to stop, but its checkpoint-3 could not be saved: .*checkpoint-2, stands"),
    ],
)
def test_a_checkpoint_without_room_is_not_begun(disk, monkeypatch, stopped, message):
    """Where a signal asked for it, the run does not count as interrupted: that would mean that it was saved."""
    trainer = make_trainer(disk / "out", ROWS, **SETTINGS)

    def full():
        fill(disk, 10_000)
        monkeypatch.setattr(full_disk, "begin_checkpoint", lambda folder: pytest.fail("it was begun"))
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.callback_handler.callbacks.insert(0, At(3, full))  # before the one that looks for the signal
    with pytest.raises(SimPOError, match=message):
        trainer.train()
    assert not trainer.interrupted
    assert [folder.name for folder in (disk / "out").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_all_processes_end_where_one_has_a_full_disk(tmp_path):
    """None waits for another one for ever: in a checkpoint behind the best one, and while the model has no room."""
    worker = [str(TESTS / "support" / "full_disk_worker.py"), str(tmp_path)]
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])
    environment = inherited | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, *worker], env=environment, capture_output=True, text=True, timeout=120)
    told = [(tmp_path / f"checkpoint-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and "checkpoint-4 could not be saved" in told[0], done.stderr[-3000:]
    assert [folder.name for folder in (tmp_path / "first").glob("checkpoint-*")] == ["checkpoint-2"]
    assert [(tmp_path / f"end-{rank}").read_text() for rank in (0, 1)] == [str(128 + signal.SIGTERM)] * 2


def test_the_last_checkpoint_without_room_does_not_cost_the_model(disk, monkeypatch, caplog):
    trainer = make_trainer(disk / "out", ROWS, **SETTINGS)
    real = full_disk.begin_checkpoint

    def begin(folder):
        real(folder)
        if folder.name == "checkpoint-6":
            fill(disk, 100_000)

    monkeypatch.setattr(full_disk, "begin_checkpoint", begin)
    monkeypatch.setattr(full_disk, "pause", lambda stop: free_again(disk))
    trainer.train()
    trainer.finish()
    assert "This run has just made its last step, and ends without that checkpoint" in caplog.text
    assert "The trained model has no room" in caplog.text
    saved, own = weights(disk / "out"), trainer.model.state_dict()
    assert all((saved[name] == own[name]).all() for name in saved) and not torn_checkpoints(disk / "out")


@pytest.fixture
def trained(disk):
    trainer = make_trainer(disk / "out", ROWS, max_steps=1)
    trainer.train()
    fill(disk, 2_000)
    return trainer


def test_the_model_waits_for_room_and_so_do_the_files_behind_it(disk, trained, monkeypatch, caplog):
    waits = []

    def pause(stop):
        waits.append(sorted(path.name for path in (disk / "out").iterdir()))
        if len(waits) == 2:
            free_again(disk)
        if len(waits) == 3:
            free_again(disk)
            (disk / "out" / "all_results.json").write_text('{"train')  # cut, as it may be left

    real = trained.save_metrics

    def full_again(*args, **kwargs):
        if len(waits) == 2:
            fill(disk, 0)
        real(*args, **kwargs)

    monkeypatch.setattr(trained, "save_metrics", full_again)
    monkeypatch.setattr(full_disk, "pause", pause)
    trained.finish()
    assert len(waits) == 3 and "model.safetensors" not in waits[1] and "model.safetensors" in waits[2]
    assert caplog.text.count("The trained model has no room in") == 2
    assert "metrics and state of the training has no room" in caplog.text
    out = disk / "out"
    assert json.loads((out / "all_results.json").read_text())["train_loss"] and not broken_files(out)
    assert (out / "README.md").is_file() and not is_open(out)


@pytest.mark.parametrize("known", [True, False], ids=["known before", "in the middle"])
def test_the_model_goes_to_another_disk(disk, trained, tmp_path, monkeypatch, caplog, known):
    if not known:
        free_again(disk)
        fill(disk, 60_000)  # room for the first of the files that the weights are in
        monkeypatch.setattr(
            trained.model, "save_pretrained", partial(trained.model.save_pretrained, max_shard_size=40_000)
        )
        monkeypatch.setattr(full_disk, "free_bytes", lambda folder: None)
        monkeypatch.setattr(saving, "save_torch_state_dict", lambda *args: pytest.fail("it was written twice"))
    (tmp_path / "rescue" / "out").mkdir(parents=True)  # of another run
    trained.args.rescue_dir = str(tmp_path / "rescue")
    trained.finish()
    files = (tmp_path / "rescue" / "out-2").glob("*.safetensors")
    saved, own = (
        {name: weight for file in files for name, weight in load_file(file).items()},
        trained.model.state_dict(),
    )
    assert saved and all((saved[name] == own[name]).all() for name in saved)
    assert (tmp_path / "rescue" / "out-2" / "tokenizer.json").is_file()
    assert not list((disk / "out").glob("*.safetensors"))
    assert "it is in" in caplog.text and not (disk / "out" / "seal.json").exists()


def test_a_signal_ends_the_waiting(disk, trained, monkeypatch, caplog):
    monkeypatch.setattr(full_disk, "WAIT", 20.0)
    monkeypatch.setattr(full_disk, "_LOOK", 0.01)
    real = trained.room.of_model

    def asked(folder=None):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(folder)

    monkeypatch.setattr(trained.room, "of_model", asked)
    with pytest.raises(SystemExit) as ended:
        trained.finish()
    assert ended.value.code == 128 + signal.SIGTERM
    assert "Stopped while waiting for room: The trained model is not saved. There is no earlier" in caplog.text
    assert not list((disk / "out").glob("*.safetensors"))


def test_a_baseline_has_the_setting_too(tmp_path, command):
    recipe = load_recipe("recipe.yaml", ["--method", "dpo", "--rescue_dir", str(tmp_path / "rescue")])
    trainer = DPOBaseline.__new__(DPOBaseline)
    trainer.shared, trainer.args = recipe.training.settled(), recipe.baseline
    assert room.rescue_dir(trainer) == tmp_path / "rescue"


def test_reports_without_room_do_not_end_a_training(disk, caplog):
    class Report(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            (disk / "report").write_bytes(bytes(100_000))

    trainer = make_trainer(disk / "out", ROWS, max_steps=3)
    trainer.add_callback(At(1, lambda: fill(disk, 0)))
    trainer.add_callback(Report())
    trainer.train()
    assert trainer.state.global_step == 3 and caplog.text.count("a report of the metrics could not be written") == 1
    assert caplog.text.count("run_manifest.json could not be written") == 1
    assert json.loads((disk / "out" / "run_manifest.json").read_text())["status"] == "running"


def test_a_checkpoint_goes_from_a_full_disk(disk, monkeypatch):
    """Its seal cannot be written anew there; killed behind it, what is left does not count."""
    folder = disk / "checkpoint-2"
    folder.mkdir()
    for name in ("trainer_state.json", "model.safetensors"):
        (folder / name).write_text("{}")
    seal_checkpoint(folder, {})
    fill(disk, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(folder), "iterdir", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        remove_checkpoint(folder)
    assert is_open(folder) and checkpoints(disk) == [] and torn_checkpoints(disk) == [folder]
    remove_checkpoint(folder)
    assert not folder.exists()


def test_the_error_is_known_in_the_words_of_each_library(disk):
    fill(disk, 100_000)
    tensors = {"weight": torch.zeros(100_000)}
    for save in (lambda: torch.save(tensors, disk / "one"), lambda: save_file(tensors, disk / "two")):
        with pytest.raises(Exception) as found:  # noqa: PT011 - each has its own
            save()
        assert is_disk_full(found.value)
    assert is_disk_full(OSError(errno.EDQUOT, "quota")) and not is_disk_full(OSError(errno.EACCES, "denied"))
    assert not is_disk_full(RuntimeError("CUDA out of memory"))
