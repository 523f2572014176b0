"""The model that is saved at the end is a whole one, however its checkpoints are."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from engines import command, environment
from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.record.seal import broken_files, is_open, read_seal
from simpo_trainer.run import run
from simpo_trainer.train import full_disk
from simpo_trainer.train.run_trainer import _gathering

RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
learning_rate: 1e-3
per_device_train_batch_size: 2
max_steps: 2
save_strategy: steps
save_steps: 1
logging_steps: 1
use_cpu: true
"""


@pytest.mark.slow
def test_a_sharded_model_is_saved_whole(tmp_path, monkeypatch):
    """Two processes under FSDP2 with checkpoints in shards: the weights that one process gets that holds all of it."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(14)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = command("FSDP2, parts", ["recipe.yaml", "--output_dir", "sharded", "--per_device_train_batch_size", "2"])
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.chdir(tmp_path)
    run(load_recipe("recipe.yaml", {"output_dir": "whole", "per_device_train_batch_size": 4}))
    checkpoint = tmp_path / "sharded" / "checkpoint-2"
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir()
    assert broken_files(checkpoint) == []
    # The parts and random states of both processes are under the seal.
    sealed = read_seal(checkpoint)["files"]
    assert {
        "pytorch_model_fsdp_0/__0_0.distcp",
        "pytorch_model_fsdp_0/__1_0.distcp",
        "rng_state_1.pth",
    } <= sealed.keys()
    assert not (checkpoint / "model.safetensors").exists()
    weights = load_file(tmp_path / "sharded" / "model.safetensors")
    torch.testing.assert_close(weights, load_file(tmp_path / "whole" / "model.safetensors"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_the_trained_model_is_gathered_for_the_folder_it_is_saved_in(tmp_path, monkeypatch, kind):
    trainer = make_trainer(tmp_path, random_pairs(4))
    gathered = {name: weight + 1 for name, weight in trainer.model.state_dict().items()}
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(state_dict_type=kind)
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", lambda model: dict(gathered))
    try:
        trainer.save_model(str(tmp_path / "out"))
    finally:
        del trainer.accelerator.state.fsdp_plugin
    saved = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(saved, gathered, rtol=0, atol=0)


def test_an_engine_gathers_while_the_trained_model_is_saved():
    """ZeRO-3 with `stage3_gather_16bit_weights_on_model_save: false` left no model, and the run said "Done"."""

    class Engine:
        def zero_gather_16bit_weights_on_model_save(self):
            return False

    engine = Engine()
    with _gathering(engine):
        assert engine.zero_gather_16bit_weights_on_model_save()
    assert not engine.zero_gather_16bit_weights_on_model_save()


def test_a_save_that_writes_no_weights_is_an_error(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, random_pairs(4))
    monkeypatch.setattr(trainer.model, "save_pretrained", lambda *arguments, **settings: None)
    with pytest.raises(SimPOError, match="no weights were written into"):
        trainer.save_model(str(tmp_path / "out"))


def test_a_checkpoint_has_an_open_seal_until_all_processes_have_written(tmp_path, monkeypatch):
    """Its folder is there before any process looks for it: all must agree whether the best checkpoint exists."""
    trainer, folder = make_trainer(tmp_path, random_pairs(4)), tmp_path / "checkpoint-3"
    seen = []
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *args: seen.append(("saved", is_open(folder))))
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", lambda: seen.append(("waited", is_open(folder))))
    # All processes meet there too, before the writing and behind it.
    monkeypatch.setattr(full_disk, "agreed", lambda problem: seen.append(("agreed", is_open(folder))) or problem)
    trainer.state.global_step = 3
    trainer._save_checkpoint(trainer.model, None)
    begun, sealed = [("agreed", False), ("agreed", True)], [("waited", True), ("agreed", False)]
    assert seen == [*begun, ("saved", True), *sealed]
    assert not is_open(folder)


def test_margins_keep_their_precision_under_deepspeed(tmp_path, monkeypatch):
    """transformers rounds each number of a batch to the precision of the model there, 0.3012 to 0.3008."""
    trainer = make_trainer(tmp_path, [{**row, "margin": 0.3012} for row in random_pairs(4)])
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    prepared = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert prepared["margin"].tolist() == pytest.approx([0.3012] * len(prepared["margin"]), rel=1e-6)
