"""`trainer.finish()` leaves what `simpo train` leaves, and a folder that is saved holds no card but this package's."""

import json
import logging
import os
import re
import signal

import pytest
from datasets import Dataset, load_dataset
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import get_peft_config

from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOError, SimPOTrainer
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.baselines.sft import SFTBaseline
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run

BASELINES = {"dpo": DPOBaseline, "sft": SFTBaseline}
# Pairs that are kept as text: an answer of an end token alone is an empty text.
PAIRS = [pair for pair in random_pairs(40) if len(pair["chosen_ids"]) > 1 and len(pair["rejected_ids"]) > 1][:16]
RECIPE = """
model_name_or_path: model
dataset_name: train.jsonl
eval_dataset_name: test.jsonl
output_dir: out
learning_rate: 1e-3
per_device_train_batch_size: 4
max_steps: 3
logging_steps: 1
save_steps: 2
report_to: none
use_cpu: true
"""
# What differs from one run to the next, and the data that only a recipe names.
OF_THE_CLOCK = re.compile(r"runtime|per_second|flos|memory")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A model, files of pairs and a recipe in the working folder."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    for name, rows in (("train", PAIRS[:12]), ("test", PAIRS[12:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(as_text(row)) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def in_python(recipe):
    """The trainer that a user of Python makes with the settings of a recipe."""
    train, test = (
        load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir="cache") for name in ("train", "test")
    )
    arguments = {
        "model": "model",
        "train_dataset": train,
        "eval_dataset": test,
        "processing_class": word_tokenizer(),
        "peft_config": get_peft_config(recipe.model),
    }
    if recipe.method == "simpo":
        return SimPOTrainer(args=recipe.training, **arguments)
    return BASELINES[recipe.method](args=recipe.baseline, shared=recipe.training.settled(), **arguments)


def written(folder):
    """The names of all files, the numbers of the metrics without times, and the card without the names of the data."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    results = json.loads((folder / "all_results.json").read_text())
    card = (folder / "README.md").read_text().partition("## Data")[0]
    return names, {name: value for name, value in results.items() if not OF_THE_CLOCK.search(name)}, card


def held_out(folder):
    return json.loads((folder / "run_manifest.json").read_text())["held_out"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("method", ["simpo", *BASELINES])
def test_python_leaves_what_the_command_line_leaves(world, method, adapter):
    changes = {"method": method, **({"use_peft": "true", "lora_target_modules": "q_proj"} if adapter else {})}
    of_command_line = run(load_recipe("recipe.yaml", changes))
    trainer = in_python(load_recipe("recipe.yaml", {**changes, "output_dir": "python"}))
    trainer.train()
    of_python = trainer.finish()

    names, results, card = written(world / "out")
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    expected = {"README.md", "run_manifest.json", "trainer_state.json", "training_curves.png", "tokenizer.json"}
    assert expected | {weights, "train_results.json", "eval_results.json", "all_results.json"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"checkpoint-2"}
    assert written(world / "python") == (names, results, card)
    assert of_python.keys() == of_command_line.keys() and of_python["eval_loss"] == of_command_line["eval_loss"]
    assert held_out(world / "python") == held_out(world / "out") != {}
    weights, others = (load_file(world / folder / weights) for folder in ("out", "python"))
    assert all(weights[name].equal(others[name]) for name in weights)


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_evaluation_is_made_once(tmp_path, several):
    """At the last step training has made it; what the caller evaluates afterwards is of other rows, perhaps."""
    one = Dataset.from_list(PAIRS[12:])
    sets = {"first": one, "second": one} if several else one
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": sets}
    trainer = make_trainer(tmp_path, PAIRS[:8], **settings)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if entry["step"] == 2]
    expected = {name: value for entry in logged for name, value in entry.items() if name.startswith("eval_")}
    trainer.evaluate(Dataset.from_list(PAIRS[:3]))
    count = len(trainer.state.log_history)
    found = trainer.finish()
    assert {name: value for name, value in found.items() if name.startswith("eval_")} == expected
    assert len(trainer.state.log_history) == count


@pytest.mark.slow
def test_without_evaluation_pairs_and_after_a_resumed_run(tmp_path, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, PAIRS[:8], **settings).train()
    resumed = make_trainer(tmp_path, PAIRS[:8], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = resumed.finish()
    assert found["train_loss"] > 0 and not (tmp_path / "eval_results.json").exists()
    before = (tmp_path / "train_results.json").read_bytes()
    again = make_trainer(tmp_path, PAIRS[:8], **settings)
    again.train(resume_from_checkpoint=True)
    assert again.finish() == {}
    assert "checkpoint-4 is already the last step of this run; nothing was trained" in caplog.text
    assert (tmp_path / "train_results.json").read_bytes() == before


def test_what_was_not_trained_to_its_end_is_not_finished(tmp_path):
    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)

        on_step_begin = on_substep_end

    trainer = make_trainer(tmp_path, PAIRS[:8], max_steps=3)
    with pytest.raises(SimPOError, match=r"nothing was. Call trainer.train\(\) first"):
        trainer.finish()
    trainer.add_callback(Stop)
    trainer.train()
    with pytest.raises(SimPOError, match=r"stopped at step 1, .*resume_from_checkpoint=True.*trainer.save_model\(\)"):
        trainer.finish()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("during", ["the end of training", pytest.param("the save", marks=pytest.mark.slow)])
def test_ctrl_c_waits_for_the_model(tmp_path, monkeypatch, caplog, during):
    caplog.set_level(logging.INFO, "simpo_trainer")
    trainer = make_trainer(tmp_path, PAIRS[:8], max_steps=1, eval_dataset=Dataset.from_list(PAIRS[12:]))

    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)

    def signalled(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments, **settings)

    plain = trainer.save_model
    if during == "the save":
        monkeypatch.setattr(trainer, "save_model", signalled)
    else:
        trainer.add_callback(AtTheEnd)
    trainer.train()
    with pytest.raises(KeyboardInterrupt):
        trainer.finish()
    assert caplog.messages[-1].startswith(f"Stopped: the trained model is in {tmp_path}")
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / "README.md").exists()
    monkeypatch.undo()
    assert trainer.finish()["eval_loss"] > 0  # asked for again, it does what was left out


# ---- The checkpoint of the last step ----


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"save_steps": 2}, ["checkpoint-2"]),
        slow({"save_steps": 500}, []),
        slow({"save_steps": 3}, ["checkpoint-3"]),
        slow({"save_strategy": "epoch"}, ["checkpoint-1", "checkpoint-2", "checkpoint-3"]),
        slow(
            {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True},
            ["checkpoint-2", "checkpoint-3"],
        ),
    ],
)
def test_a_checkpoint_that_only_the_end_asked_for_goes_when_all_is_saved(tmp_path, settings, left):
    settings = {"save_strategy": "steps", "max_steps": 3, **settings}
    trainer = make_trainer(tmp_path, PAIRS[:8], eval_dataset=Dataset.from_list(PAIRS[12:]), **settings)
    trainer.train()
    assert (tmp_path / "checkpoint-3").is_dir()  # until then it guards what was trained
    trainer.finish()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == left
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
def test_it_stays_where_something_failed_after_the_training(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, PAIRS[:8], max_steps=3, save_strategy="steps", save_steps=2)
    trainer.train()
    monkeypatch.setattr(trainer, "create_model_card", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.finish()
    assert (tmp_path / "checkpoint-3" / "optimizer.pt").is_file()


# ---- Cards that a save leaves ----


@pytest.mark.parametrize("method", ["simpo", *map(slow, BASELINES)])
def test_a_saved_adapter_has_no_card_of_peft(world, method):
    recipe = load_recipe("recipe.yaml", {"method": method, "use_peft": "true", "lora_target_modules": "q_proj"})
    trainer = in_python(recipe)
    trainer.train()
    (world / "mine").mkdir()
    (world / "mine" / "README.md").write_text("# Mine\n")
    for folder in ("mine", "new"):
        trainer.save_model(folder)
        assert (world / folder / "adapter_model.safetensors").is_file()
    assert (world / "mine" / "README.md").read_text() == "# Mine\n"
    assert not (world / "new" / "README.md").exists()
    assert (world / "out" / "checkpoint-3" / "adapter_config.json").is_file()
    assert not list((world / "out").rglob("README.md"))
    # The model is as it was: saved by itself, it writes peft's card.
    trainer.model.save_pretrained("by itself")
    assert (world / "by itself" / "README.md").is_file()
