"""Runs of DPO and SFT from a recipe of SimPO: budget and record are its own, they go on, and adapters are as asked."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from trl.trainer import base_trainer

from baselines import PAIRS, TEMPLATE, dpo_baseline, losses_of, manifest, sft_baseline
from hub_server import TOKEN, HubServer, open_to
from models import (
    ARCHITECTURES,
    as_text,
    tiny_architecture,
    tiny_model,
    word_tokenizer,
)
from simpo_trainer.baselines.settings import ARGUMENTS, DPOArguments
from simpo_trainer.errors import SimPOError
from simpo_trainer.run.one_run import Interrupted, run
from simpo_trainer.train.stop import StopRequest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_dpo_run_from_a_recipe_of_simpo(recipe, world, caplog):
    metrics = run(recipe("--method", "dpo", beta=2.0, gamma_beta_ratio=0.3, loss_type="hinge", batch_layout="padded"))
    # Policy and reference are one model at the first step.
    assert losses_of()[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses_of()[1] != pytest.approx(math.log(2), abs=1e-4)
    assert metrics["eval_loss"] > 0 and metrics["train_loss"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "model", Path("out")))
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    record = manifest()
    assert (record["method"], record["dpo"]["beta"], record["dpo"]["loss_type"]) == ("dpo", 0.01, ["sigmoid"])
    assert record["status"] == "finished" and "simpo" not in record
    assert record["batch"]["global"] == 4
    card = Path("out/README.md").read_text()
    assert "trained on preference pairs with DPO" in card and "SimPO" not in card.replace("simpo-trainer", "")
    assert "DPO: loss sigmoid, beta 0.01. Reference: a frozen copy of the starting model." in card
    assert Path("out/training_curves.png").is_file()
    assert "beta: 2.0" in caplog.text and "ignored under method dpo, which takes beta: 0.01" in caplog.text
    # The tokens are those of a SimPO run, to the last one.
    unit = "margin, chosen and rejected are sums over the tokens of an answer, in nats"
    assert caplog.text.count(unit) == 1
    run(recipe(output_dir="simpo"))
    assert manifest("simpo")["method"] == "simpo" and caplog.text.count(unit) == 1
    tokens = [manifest(folder)["data"]["sets"]["train"]["tokens_sha256"] for folder in ("out", "simpo")]
    assert tokens[0] == tokens[1]


def test_the_reference_is_loaded_as_asked(world, tmp_path):
    trainer = dpo_baseline(world, tmp_path, PAIRS[:4], ref_model_init_kwargs={"attn_implementation": "eager"})
    assert trainer.ref_model.config._attn_implementation == "eager"
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not trainer.ref_model.training and trainer.model.dtype == trainer.ref_model.dtype == torch.float32


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_nobody_is_told_of_a_run(world, tmp_path, monkeypatch, method):
    def fail(*arguments, **settings):
        raise AssertionError("telemetry")

    monkeypatch.setattr(base_trainer, "send_telemetry", fail)
    monkeypatch.delenv("CI", raising=False)
    (dpo_baseline if method == "dpo" else sft_baseline)(world, tmp_path, PAIRS[:4])


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint(recipe, monkeypatch):
    """The stop request is asked after each step, as for SimPO."""
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "number", signal.SIGINT) or self)
    with pytest.raises(Interrupted, match="--resume_from_checkpoint=out/checkpoint-1"):
        run(recipe("--method=dpo"))
    assert Path("out/checkpoint-1/optimizer.pt").is_file() and manifest()["status"] == "interrupted"


def test_one_folder_holds_one_method(recipe):
    Path("out").mkdir()
    Path("out/run_manifest.json").write_text("{}")  # of a version that knew no other method
    with pytest.raises(SimPOError, match="holds a run of method simpo; this run is of method dpo.*such as out-dpo"):
        run(recipe("--method=dpo"))


@pytest.mark.slow
def test_a_resumed_dpo_run_ends_as_an_uninterrupted_one(recipe):
    settings = {"method": "dpo", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run(recipe(**settings))
    whole = load_file("out/model.safetensors")
    run(recipe("--resume_from_checkpoint", "out/checkpoint-2", **settings))
    resumed = load_file("out/model.safetensors")
    assert manifest()["resumed_from_step"] == 2
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(recipe):
    """The global batch of 4 pairs is 2 x 2 in one process and 2 x 1 in each of two, under either method."""
    # Three held-out pairs in batches of two: of two processes, one has a pair less.
    Path("three.jsonl").write_text("".join(json.dumps(as_text(row)) + "\n" for row in PAIRS[12:15]))
    evaluated = {"eval_dataset_name": "three.jsonl", "eval_strategy": "epoch", "per_device_eval_batch_size": 2}
    for method in ARGUMENTS:
        run(recipe(method=method, output_dir=method, max_steps=3, use_cpu=True, dataloader_drop_last=True, **evaluated))
    words = [["r.yaml", {"method": method, "output_dir": f"{method}-two"}] for method in ARGUMENTS]
    Path("runs.json").write_text(json.dumps(words))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    worker = [str(ROOT / "tests" / "support" / "recipes_worker.py"), "runs.json"]
    done = subprocess.run([*command, *worker], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("2 per device x 2 processes x 1 accumulation") == 2
    for method in ARGUMENTS:
        one, two = manifest(method), manifest(f"{method}-two")
        assert one["method"] == two["method"] == method
        assert sorted(os.listdir(method)) == sorted(os.listdir(f"{method}-two"))
        assert one["batch"]["global"] == two["batch"]["global"] == 4
        assert losses_of(f"{method}-two") == pytest.approx(losses_of(method), rel=1e-4)
        for measured in ("start", "end"):
            assert two[measured] == pytest.approx(one[measured], rel=1e-4)
            scored = (found["held_out"]["eval"][measured] for found in (one, two))
            assert next(scored) == pytest.approx(next(scored), rel=1e-4, abs=1e-6)
        assert one["measured_rows"] == two["measured_rows"]


@pytest.mark.slow
@pytest.mark.parametrize("precompute", [False, True])
def test_dpo_with_an_adapter(recipe, precompute):
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
    metrics = run(recipe(method="dpo", precompute_ref_log_probs=precompute, **lora))
    assert losses_of()[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses_of()[1] < math.log(2) and "eval_rewards/accuracies" in metrics
    weights = load_file("out/adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    assert manifest()["model"]["adapter"]["r"] == 4
    expected = "log-probabilities computed before training" if precompute else "the model without its new adapter"
    assert f"Reference: {expected}." in Path("out/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
def test_the_same_command_gives_the_same_adapter(recipe, method):
    """The seed decides its first weights too."""
    for folder in ("one", "two"):
        run(recipe(method=method, output_dir=folder, use_peft=True, lora_target_modules="all-linear", lora_dropout=0.0))
    one, two = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_baseline_resumes_only_from_what_fits(recipe, method):
    """Checked as for SimPO, in the same place."""
    run(recipe(method=method, save_strategy="steps", save_steps=1))
    with pytest.raises(SimPOError, match="learning_rate was 0.001 and is 0.002"):
        run(recipe(method=method, resume_from_checkpoint="out/checkpoint-1/", learning_rate=2e-3))
    for step in (1, 2):
        os.remove(f"out/checkpoint-{step}/seal.json")  # as an earlier version left them
    os.remove("out/checkpoint-1/scheduler.pt")
    with pytest.raises(SimPOError, match="holds no scheduler state"):
        run(recipe(method=method, resume_from_checkpoint="out/checkpoint-1"))
    os.remove("out/checkpoint-2/optimizer.pt")
    with pytest.raises(SimPOError, match="holds no optimiser state"):
        run(recipe(method=method, resume_from_checkpoint=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_baseline_saves_a_model_whose_generation_configuration_could_not_be(recipe, world, tmp_path, method):
    """As Llama-2-chat ships it."""
    shutil.copytree(world / "model", tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    run(recipe(method=method, model_name_or_path=str(tmp_path / "base")))
    assert json.loads(Path("out/generation_config.json").read_text())["do_sample"] is True
    assert Path("out/model.safetensors").is_file()


@pytest.mark.slow
def test_going_on_from_an_adapter(recipe):
    """The reference is then the adapter as it was, not the base below it."""
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
    run(recipe(method="dpo", output_dir="first", **lora))
    tokenizer = recipe().model.model_name_or_path
    run(recipe(method="dpo", model_name_or_path="first", tokenizer_name_or_path=tokenizer))
    assert losses_of()[0] == pytest.approx(math.log(2), abs=1e-6)
    assert "Reference: the adapter as it was." in Path("out/README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_a_push_brings_the_card_of_the_method(recipe, monkeypatch):
    with HubServer() as server:
        open_to(monkeypatch, server.url)
        run(recipe(method="dpo", push_to_hub=True, hub_model_id="tester/dpo", max_steps=1))
    repo = server.repos["tester/dpo"]
    assert {"model.safetensors", "README.md", "run_manifest.json", "training_curves.png"} <= repo.files.keys()
    assert not any(name.startswith(("training_args", "checkpoint")) for name in repo.files)
    assert ModelCard(repo.files["README.md"].decode()).data.tags == ["dpo", "trl", "preference-optimization"]
    assert all(TOKEN.encode() not in content for content in repo.files.values())


@pytest.mark.slow
def test_sft_trains_on_chosen_answers_only(recipe):
    loaded = recipe("--method=sft", "--learning_rate=2e-5")
    metrics = run(loaded)
    assert metrics["eval_loss"] > 0 and "eval_mean_token_accuracy" in metrics
    record = manifest()
    assert (record["method"], record["sft"]["loss_type"]) == ("sft", "nll")
    card = Path("out/README.md").read_text()
    assert "by supervised fine-tuning (SFT)" in card and "SimPO" not in card.replace("simpo-trainer", "")
    assert "| share of tokens that the model would have chosen itself |" in card
    assert Path("out/training_curves.png").is_file()


@pytest.mark.slow
def test_sft_on_conversations(recipe, world):
    settings = {"dataset_name": str(world / "talks.jsonl"), "eval_dataset_name": None, "chat_template": TEMPLATE}
    metrics = run(recipe(method="sft", max_steps=1, **settings))
    assert metrics["train_loss"] > 0
    assert manifest()["data"]["sets"]["train"]["rows"] == 8
    assert manifest()["held_out"] == {} and manifest()["data"]["sets"]["train"]["pairs_sha256"] is None
    assert "a mean over the tokens of whole conversations" in Path("out/README.md").read_text()
    # No other method can do with them.
    with pytest.raises(SimPOError, match="column 'chosen' and 'rejected' missing; the columns are 'messages'"):
        run(recipe(output_dir="simpo", **settings))


def test_the_token_of_the_hub_is_not_pickled():
    arguments = DPOArguments(output_dir="out", use_cpu=True, bf16=False, hub_token="hf_secret", report_to="none")
    assert b"hf_secret" not in pickle.dumps(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
def test_the_saved_adapter_says_the_dropout_that_was_trained(recipe, method):
    run(recipe(method=method, use_peft=True, lora_target_modules=["q_proj"], lora_dropout=0.2, max_steps=1))
    saved = json.loads(Path("out/adapter_config.json").read_text())
    assert (saved["lora_dropout"], saved["target_modules"]) == (0.0, ["q_proj"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
def test_an_adapter_that_is_not_what_was_asked_for_is_refused(recipe, method, world, tmp_path):
    with pytest.raises(SimPOError, match="names v_porj, which this model does not have"):
        run(recipe(method=method, use_peft=True, lora_target_modules=["q_proj", "v_porj"]))
    tiny_model(ARCHITECTURES["qwen3-tied"]()).save_pretrained(tmp_path / "tied")
    word_tokenizer().save_pretrained(tmp_path / "tied")
    tied = {"model_name_or_path": str(tmp_path / "tied"), "use_peft": True}
    with pytest.raises(SimPOError, match="embed_tokens and lm_head are one weight"):
        run(recipe(method=method, lora_target_modules=["embed_tokens"], **tied))
    tiny_architecture("mixtral").save_pretrained(tmp_path / "experts")
    word_tokenizer().save_pretrained(tmp_path / "experts")
    experts = {"model_name_or_path": str(tmp_path / "experts"), "use_peft": True, "lora_target_modules": "all-linear"}
    with pytest.raises(SimPOError, match="Set lora_dropout: 0, or disable_dropout: true"):
        run(recipe(method=method, disable_dropout=False, **experts))
    run(recipe(method=method, max_steps=1, **experts))
    assert any("experts" in name for name in load_file("out/adapter_model.safetensors"))


@pytest.mark.slow
def test_noise_in_embeddings_is_trls_unless_it_reaches_the_reference(recipe):
    assert recipe(method="sft", neftune_noise_alpha=5).baseline.neftune_noise_alpha == 5
    run(recipe(method="dpo", neftune_noise_alpha=5, max_steps=1))
    with pytest.raises(SimPOError, match=r"neftune_noise_alpha is 5.* would have noise too\. Remove"):
        run(recipe(method="dpo", neftune_noise_alpha=5, use_peft=True, lora_target_modules="all-linear"))
    with pytest.raises(SimPOError, match="neftune_noise_alpha is 5"):
        recipe(neftune_noise_alpha=5)
