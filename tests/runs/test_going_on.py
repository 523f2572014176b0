"""One command starts a run, goes on with it wherever it was killed, and says when it is finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name

import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

from models import random_pairs, tiny_model
from runs import write_run
from simpo_trainer import SimPOConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.knobs import harmless_knobs
from simpo_trainer.recipe import load_recipe
from simpo_trainer.record.differences import differences, told
from simpo_trainer.record.seal import read_seal
from simpo_trainer.run import run
from simpo_trainer.train.identity import HARMLESS

ROOT = Path(__file__).parents[2]
RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
dataset_train_split: train[:20]
dataset_test_split: train[20:]
output_dir: out
logging_steps: 1
num_train_epochs: 2
per_device_train_batch_size: 4
learning_rate: 1e-3
eval_strategy: steps
eval_steps: 3
save_strategy: steps
save_steps: 3
save_total_limit: 2
use_cpu: true
report_to: none
"""


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody killed, with all that it was made from."""
    folder = tmp_path_factory.mktemp("whole")
    write_run(folder, RECIPE, random_pairs(24))
    before = os.getcwd()
    os.chdir(folder)
    try:
        run(load_recipe("recipe.yaml"))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """The same recipe in a fresh folder, and a function that runs the one command."""
    for name in ("recipe.yaml", "pairs.jsonl"):
        shutil.copy(whole / name, tmp_path)
    shutil.copytree(whole / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def command(*overrides):
        return run(load_recipe("recipe.yaml", ["--resume_from_checkpoint", "auto", *overrides]))

    return command


@contextmanager
def killed_at(monkeypatch, name, call):
    """While entered, the call number `call` of a function dies before it does anything."""
    owner, _, function = name.rpartition(".")
    target, calls = resolve_name(owner), []
    real = getattr(target, function)

    def dies(*args, **given):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return real(*args, **given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, function, dies)
        yield


def weights(folder):
    return load_file(folder / "out" / "model.safetensors")


def log(folder):
    """The log without times."""
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    timed = ("runtime", "per_second", "flos", "time")
    return [
        {key: value for key, value in line.items() if not any(word in key for word in timed)}
        for line in state["log_history"]
    ]


def assert_same_end(folder, whole):
    found, expected = weights(folder), weights(whole)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    kept = [line for line in log(folder) if "train_loss" not in line]
    assert kept == [line for line in log(whole) if "train_loss" not in line]
    names, expected_names = ({path.name for path in (each / "out").iterdir()} for each in (folder, whole))
    # A run that was killed behind its last step trains nothing more, and keeps the checkpoint that it went on from.
    assert expected_names - names <= {"train_results.json"}
    assert all(name.startswith("checkpoint-") for name in names - expected_names)


POINTS = {
    "before the first checkpoint": ("transformers.trainer.Trainer.training_step", 2),
    "an evaluation": ("simpo_trainer.train.trainer.SimPOTrainer.evaluate", 1),
    "the optimiser of the second checkpoint": ("transformers.trainer.Trainer._save_optimizer_and_scheduler", 2),
    "the random state of the first checkpoint": ("transformers.trainer.Trainer._save_rng_state", 1),
    "the seal of the second checkpoint": ("simpo_trainer.train.full_disk.seal_checkpoint", 2),
    "the rotation": ("simpo_trainer.train.run_trainer.rotate_checkpoints", 3),
    "the final model": ("simpo_trainer.train.finish._save", 1),
    "the card": ("simpo_trainer.train.finish._publish", 1),
    "the seal of the run": ("simpo_trainer.train.finish.seal_end", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_the_same_command_after_a_kill_ends_where_the_whole_run_does(again, whole, monkeypatch, tmp_path, point):
    with killed_at(monkeypatch, *POINTS[point]):
        again()
    again()
    assert_same_end(tmp_path, whole)
    assert "finished" in read_seal(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--max_steps", "7"), ("--num_train_epochs", "1.5")], ids=["steps", "epochs"])
def test_a_run_whose_last_step_is_within_an_epoch_makes_none_too_many(again, monkeypatch, tmp_path, words):
    """The learning rate is the same to the end, so that each step shows in the weights."""
    words = (*words, "--lr_scheduler_type", "constant")
    again(*words, "--output_dir", "expected")
    with killed_at(monkeypatch, "simpo_trainer.train.finish._save", 1):
        again(*words)
    again(*words)
    found, expected = weights(tmp_path), load_file(tmp_path / "expected" / "model.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)
    epochs = []
    for out in ("out", "expected"):
        state = json.loads((tmp_path / out / "trainer_state.json").read_text())
        epochs.append((state["global_step"], state["num_train_epochs"], state["epoch"]))
    assert epochs[0] == epochs[1]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(again, whole, tmp_path, monkeypatch, caplog):
    shutil.copytree(whole / "out", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    caplog.set_level("INFO")
    metrics = again("--logging_steps", "5", "--per_device_eval_batch_size", "2", "--run_name", "another")
    assert "This run is finished: its model is in out. Nothing was trained." in caplog.text
    assert "eval_loss" in metrics and "train_loss" in metrics
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--learning_rate", "2e-3"], "learning_rate was 0.001 and is 0.002"),
        (["--beta", "3"], "beta was 2.0 and is 3.0"),
        (["--num_train_epochs", "3"], "num_train_epochs was 2.0 and is 3.0"),
        (["--per_device_train_batch_size", "2"], "pairs of a step was 4 and is 2"),
        (["--dataset_train_split", "train[:19]"], "the training pairs are not the same"),
        (["--use_peft", "true"], "adapter was null"),
    ],
)
def test_another_recipe_in_the_folder_is_refused(again, whole, tmp_path, changed, message):
    shutil.copytree(whole / "out", tmp_path / "out")
    with pytest.raises(SimPOError, match=f"out holds a finished run that differs from this one: .*{message}"):
        again(*changed)
    (tmp_path / "out" / "seal.json").unlink()  # as of a run that was killed before its end
    with pytest.raises(SimPOError, match=f"checkpoint-6 is a checkpoint of a run that differs.*{message}.*_earlier-"):
        again(*changed)


@pytest.mark.slow
def test_the_same_batch_in_other_parts_is_the_same_run(again, whole, tmp_path):
    shutil.copytree(whole / "out", tmp_path / "out")
    assert "eval_loss" in again("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")


@pytest.mark.slow
def test_another_model_is_refused(again, whole, tmp_path):
    shutil.copytree(whole / "out", tmp_path / "out")
    tiny_model(seed=9).save_pretrained(tmp_path / "model")
    with pytest.raises(SimPOError, match="the base model is not the same"):
        again()


@pytest.mark.slow
def test_a_final_model_that_is_damaged_is_made_again(again, whole, tmp_path, caplog):
    shutil.copytree(whole / "out", tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    again()
    assert "The model of the finished run in out is not whole (model.safetensors has 0 bytes, not " in caplog.text
    found, expected = weights(tmp_path), weights(whole)
    assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.slow
def test_a_checkpoint_without_its_state_is_named_and_passed_over(again, monkeypatch, tmp_path, caplog):
    with killed_at(monkeypatch, "simpo_trainer.train.finish._save", 1):
        again("--max_steps", "6")
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").unlink()
    caplog.set_level("INFO")
    again("--max_steps", "6")
    assert "out/checkpoint-6 is not whole (trainer_state.json is missing)" in caplog.text
    assert "Going on from out/checkpoint-3." in caplog.text


@pytest.mark.slow
def test_a_checkpoint_that_was_changed_is_passed_over(again, whole, tmp_path, monkeypatch, caplog):
    with killed_at(monkeypatch, "simpo_trainer.train.finish._save", 1):
        again()
    optimizer = tmp_path / "out" / "checkpoint-8" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    caplog.set_level("INFO")
    again()
    assert "out/checkpoint-8 is not whole (optimizer.pt was changed (its hash is another))" in caplog.text
    assert "Going on from out/checkpoint-6." in caplog.text
    shutil.rmtree(tmp_path / "out" / "_earlier-checkpoint-8")  # set aside, as every one of a later step
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_starts_over_is_not_finished_until_it_ends(again, whole, tmp_path, monkeypatch, caplog):
    shutil.copytree(whole / "out", tmp_path / "out")
    with killed_at(monkeypatch, "transformers.trainer.Trainer.training_step", 2):
        again("--resume_from_checkpoint", "false")
    assert read_seal(tmp_path / "out") is None
    caplog.set_level("INFO")
    again()
    assert "This run is finished" not in caplog.text
    assert log(tmp_path)[0]["step"] == 1 and "finished" in read_seal(tmp_path / "out")


@pytest.mark.slow
def test_false_starts_over_and_says_what_becomes_of_the_old_run(again, whole, tmp_path, caplog):
    shutil.copytree(whole / "out", tmp_path / "out")
    run(load_recipe("recipe.yaml", ["--resume_from_checkpoint", "false", "--max_steps", "1"]))
    assert "out holds a finished run. This one starts over, and overwrites its model when it ends" in caplog.text
    assert "they are kept as out/_earlier-*" in caplog.text
    assert read_seal(tmp_path / "out")["step"] == 1


@pytest.mark.slow
def test_checkpoints_without_an_optimiser_cannot_be_gone_on_from(again, whole, tmp_path, monkeypatch, caplog):
    with killed_at(monkeypatch, "simpo_trainer.train.finish._save", 1):
        again("--save_only_model", "true")
    again("--save_only_model", "true")
    assert "holds no optimiser state" in caplog.text and "The run starts over." in caplog.text
    found, expected = weights(tmp_path), weights(whole)
    assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.slow
def test_a_process_killed_by_the_system_goes_on_by_the_same_command(again, whole, tmp_path):
    """kill -9 as soon as there is a checkpoint; the command line's default is auto."""
    words = [sys.executable, "-m", "simpo_trainer", "train", "recipe.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, **silent)
    try:
        for _ in range(600):
            if (tmp_path / "out" / "checkpoint-3").is_dir() or process.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    for said in ("Done: model", "This run is finished"):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0 and said in done.stderr, done.stderr
    assert_same_end(tmp_path, whole)


def test_every_inherited_setting_is_classed():
    """A field that a new version of transformers brings counts as one that changes the result, until it is put here."""
    harmless = set().union(*HARMLESS.values())
    assert len(harmless) == sum(map(len, HARMLESS.values()))
    changing = {
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "tf32", "use_liger_kernel", "liger_kernel_config"),
        *("neftune_noise_alpha", "auto_find_batch_size", "load_best_model_at_end", "metric_for_best_model"),
        *("greater_is_better", "ignore_data_skip", "full_determinism", "seed", "data_seed", "parallelism_config"),
        *("dataloader_drop_last", "train_sampling_strategy"),
    }
    known = {each.name for each in fields(TrainingArguments) if each.init}
    assert known - harmless - changing == set()
    assert not harmless & changing


def test_every_setting_of_the_package_says_whether_it_changes_the_result():
    """Of one that is inherited with another default, the two places say the same."""
    inherited = {each.name for each in fields(TrainingArguments)}
    harmless = harmless_knobs(SimPOConfig)
    assert harmless - inherited == {
        *("allow_changes", "batch_layout", "dataset_num_proc", "global_batch_size", "model_init_kwargs", "rescue_dir"),
        *("sample_prompts", "stop_on_collapse", "push_report"),
    }
    knobs = {each.name for each in fields(SimPOConfig) if "changes_result" in each.metadata}
    assert harmless & inherited == knobs & set().union(*HARMLESS.values())
    assert knobs >= {each.name for each in fields(SimPOConfig)} - inherited


@pytest.mark.parametrize(
    ("sealed", "own", "found"),
    [
        ({"beta": 2.0}, {"beta": 2.0}, []),
        ({"beta": 2.0}, {"beta": 2.5}, ["beta was 2.0 and is 2.5"]),
        ({}, {"beta": 2.5}, []),  # a setting that the earlier version did not have
        ({"old": 1}, {}, []),
        ({"loss_type": "sigmoid"}, {"loss_type": ["ipo"]}, ['loss_type was sigmoid and is ["ipo"]']),
        ({"the training pairs": "0" * 64}, {"the training pairs": "1" * 64}, ["the training pairs are not the same"]),
        ({"the tokenizer": "a" * 32}, {"the tokenizer": "b" * 32}, ["the tokenizer is not the same"]),
    ],
)
def test_differences_of_two_runs(sealed, own, found):
    assert told(differences(sealed, own)) == "; ".join(found)
