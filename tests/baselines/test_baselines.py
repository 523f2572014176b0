"""DPO and SFT from the same recipes: the rows and budget are SimPO's, the training is trl's, and the record says so."""

import inspect
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from trl import DPOTrainer, SFTTrainer
from trl.trainer import base_trainer, dpo_trainer
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from hub_server import TOKEN, HubServer, open_to
from models import (
    ARCHITECTURES,
    EOS,
    as_text,
    random_pairs,
    random_ranked,
    tiny_architecture,
    tiny_model,
    two_by_two,
    word_tokenizer,
)
from reference import in_float64, score_answer
from runs import make_trainer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.baselines.dpo_losses import DIVERGENCES, DPO_LOSSES
from simpo_trainer.baselines.settings import ARGUMENTS, DPOArguments, own_keys
from simpo_trainer.baselines.sft import SFTBaseline
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import Interrupted, run
from simpo_trainer.train.stop import StopRequest

# Pairs that are kept as text: an answer of an end token alone is an empty text.
PAIRS = [pair for pair in random_pairs(40) if len(pair["chosen_ids"]) > 1 and len(pair["rejected_ids"]) > 1][:16]
ROOT = Path(__file__).parents[2]
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m['content'] }} {% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} w3 {% endif %}"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with its tokenizer, and files of rows."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    talks = [
        {"messages": [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": f"w6 w{7 + i}"}]}
        for i in range(8)
    ]
    for name, rows in (("pairs", map(as_text, PAIRS[:12])), ("test", map(as_text, PAIRS[12:])), ("talks", talks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe(world, tmp_path, monkeypatch):
    """Write a recipe of SimPO, changed by keys, and load it with overrides."""
    monkeypatch.chdir(tmp_path)

    def recipe(*overrides, **changes):
        settings = {
            "model_name_or_path": str(world / "model"),
            "dataset_name": str(world / "pairs.jsonl"),
            "eval_dataset_name": str(world / "test.jsonl"),
            "output_dir": "out",
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "per_device_train_batch_size": 2,
            "global_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            **changes,
        }
        settings = {key: value for key, value in settings.items() if value is not None}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
        return load_recipe("r.yaml", overrides)

    return recipe


def dpo_baseline(world, folder, rows, *, eval_rows=None, peft_config=None, shared=None, **settings):
    """The trainer on token rows."""
    shared = shared or SimPOConfig(output_dir=str(folder), use_cpu=True)
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | settings
    return DPOBaseline(
        model=str(world / "model"),
        args=DPOArguments(output_dir=str(folder), max_length=None, remove_unused_columns=False, **settings),
        shared=shared,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
        processing_class=word_tokenizer(),
        peft_config=peft_config,
    )


def ids_of(rows):
    return [{name: row[name] for name in IDS} for row in rows]


def manifest(folder="out"):
    return json.loads((Path(folder) / "run_manifest.json").read_text())


# --- The contract with trl --------------------------------------------------------------------------------------------


def test_what_the_adapter_builds_on_is_still_so_in_trl():
    """Each of these is a name or shape inside trl that a new version may change in silence."""
    parameters = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert parameters == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert "self._prepare_dataset(train_dataset" in inspect.getsource(DPOTrainer.__init__)
    assert callable(_BaseTrainer._send_telemetry)
    assert 'is_processed = "input_ids" in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)
    assert 'if "labels" not in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)


def test_the_names_of_losses_are_trls():
    text = ARGUMENTS["dpo"].__dataclass_fields__["loss_type"].metadata["help"]
    assert set(re.findall(r"`'(\w+)'`", text)) == set(DPO_LOSSES)
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(DPO_LOSSES)
    assert set(re.findall(r'f_divergence_type == "(\w+)"', source)) == set(DIVERGENCES)


# --- Rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_dpo_trains_on_the_tokens_of_simpo(world, tmp_path, monkeypatch, overlong):
    """Rows cut to length and rows left out are the same, and trl tokenizes nothing."""

    def fail(*arguments, **settings):
        raise AssertionError("trl tokenized a row")

    monkeypatch.setattr(dpo_trainer, "_tokenize", fail)
    texts = [*map(as_text, PAIRS[:12]), {"prompt": "w3", "chosen": " ", "rejected": " w4"}]
    lengths = {"max_length": 12 if overlong == "truncate" else 14, "max_prompt_length": 6, "overlong": overlong}
    ours = make_trainer(tmp_path / "simpo", texts, **lengths)
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, **lengths)
    theirs = dpo_baseline(world, tmp_path / "dpo", texts, eval_rows=texts, shared=shared)
    assert ids_of(theirs.train_dataset) == ids_of(ours.train_dataset) == ids_of(theirs.eval_dataset)
    report = theirs.token_sets["train"].report
    assert "empty_answer" in report.dropped
    cut = report.truncated_prompts if overlong == "truncate" else report.dropped["overlong"].count
    assert cut > 0
    assert isinstance(theirs.data_collator, DataCollatorForPreference)
    rows = [theirs.train_dataset[i] for i in range(3)]
    batch = theirs.data_collator(rows)
    for side, (name, half) in enumerate((("chosen_ids", slice(0, 3)), ("rejected_ids", slice(3, 6)))):
        seen = zip(batch["input_ids"][half], batch["attention_mask"][half], batch["completion_mask"][half], strict=True)
        for row, (ids, attention, completion) in zip(rows, seen, strict=True):
            assert ids[attention.bool()].tolist() == row["prompt_ids"] + row[name], side
            assert ids[completion.bool()].tolist() == row[name]


def test_ranked_answers_become_pairs_two_by_two(world, tmp_path):
    rows = random_ranked(4)
    trainer = dpo_baseline(world, tmp_path, rows)
    assert ids_of(trainer.train_dataset) == ids_of(two_by_two(rows))


def test_evaluating_texts_is_refused_instead_of_tokenized_otherwise(world, tmp_path):
    trainer = dpo_baseline(world, tmp_path, PAIRS[:4])
    with pytest.raises(
        SimPOError, match="token rows for an evaluation; the columns chosen_ids, prompt_ids, rejected_ids are missing"
    ):
        trainer.evaluate(Dataset.from_list([as_text(pair) for pair in PAIRS[:4]]))


# --- The loss ---------------------------------------------------------------------------------------------------------


def dpo_by_hand(policy, reference, rows, beta, loss="sigmoid"):
    """The mean DPO loss of token rows, one answer at a time in float64."""
    losses = []
    with torch.no_grad():
        for row in rows:
            sides = [(score_answer(policy, row["prompt_ids"], row[name]).sum, row[name]) for name in IDS[1:]]
            before = [score_answer(reference, row["prompt_ids"], row[name]).sum for name in IDS[1:]]
            ratios = [float(now - then) for (now, _), then in zip(sides, before, strict=True)]
            if loss == "ipo":
                ratios = [ratio / len(ids) for ratio, (_, ids) in zip(ratios, sides, strict=True)]
                losses.append((ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2)
            else:
                losses.append(math.log1p(math.exp(-beta * (ratios[0] - ratios[1]))))
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_logged_loss_is_the_papers(world, tmp_path, loss):
    """A policy that differs from its reference, against the formula."""
    rows = PAIRS[:6]
    settings = {"beta": 0.05, "loss_type": [loss], "per_device_eval_batch_size": 6}
    trainer = dpo_baseline(world, tmp_path, rows, eval_rows=rows, **settings)
    trainer.model.load_state_dict(tiny_model(seed=1).state_dict())
    found = trainer.evaluate()
    expected = dpo_by_hand(in_float64(tiny_model(seed=1)), in_float64(tiny_model()), rows, 0.05, loss)
    assert abs(expected - (math.log(2) if loss == "sigmoid" else 100)) > 0.01
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["eval_logps/margins"] == pytest.approx(found["eval_logps/chosen"] - found["eval_logps/rejected"])


# --- Runs -------------------------------------------------------------------------------------------------------------


def losses_of(folder="out"):
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


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


def sft_baseline(world, folder, rows, tokenizer=None, shared=None, **settings):
    recipe_settings = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | settings
    return SFTBaseline(
        model=str(world / "model"),
        args=ARGUMENTS["sft"](output_dir=str(folder), max_length=None, remove_unused_columns=False, **recipe_settings),
        shared=shared or SimPOConfig(output_dir=str(folder), use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        processing_class=tokenizer or word_tokenizer(),
    )


def chat_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_the_labels_of_sft(world, tmp_path):
    trainer = sft_baseline(world, tmp_path, PAIRS[:6])
    for row, pair in zip(trainer.train_dataset, PAIRS[:6], strict=True):
        assert row["input_ids"] == pair["prompt_ids"] + pair["chosen_ids"]
        assert row["labels"] == [-100] * len(pair["prompt_ids"]) + pair["chosen_ids"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert ((batch["labels"] != -100).sum(1) <= 8).all()
    # The logged loss is the mean over those tokens.
    expected = [score_answer(in_float64(tiny_model()), p["prompt_ids"], p["chosen_ids"]).logps for p in PAIRS[:6]]
    found = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert found == pytest.approx(-float(torch.cat(expected).mean().detach()), rel=1e-4)
    whole = sft_baseline(world, tmp_path, PAIRS[:6], completion_only_loss=False)
    assert all(row["labels"] == row["input_ids"] for row in whole.train_dataset)


def test_sft_on_ranked_answers_takes_the_best(world, tmp_path):
    rows = random_ranked(3)
    trainer = sft_baseline(world, tmp_path, rows)
    assert [row["input_ids"] for row in trainer.train_dataset] == [r["prompt_ids"] + r["response_ids"][0] for r in rows]


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


def test_the_tokens_of_conversations(world, tmp_path):
    system = {"role": "system", "content": "w9"}
    talk = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6 w7"}]
    rows = [{"messages": [system, *talk]}, {"messages": talk}]
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, max_length=4, max_prompt_length=2)
    found = sft_baseline(world, tmp_path, rows, chat_tokenizer(), shared).train_dataset["input_ids"][:]
    assert found == [[1, 9, 4, 5], [1, 4, 5, 6]]
    shared = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, system_messages="drop")
    found = sft_baseline(world, tmp_path, rows, chat_tokenizer(), shared).train_dataset["input_ids"][:]
    assert found == [[1, 4, 5, 6, 7, EOS]] * 2
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        sft_baseline(world, tmp_path, rows)


def test_conversations_and_pairs_do_not_mix(recipe, world):
    mixed = {str(world / "talks.jsonl"): 1.0, str(world / "pairs.jsonl"): 1.0}
    loaded = recipe(method="sft", dataset_name=None, eval_dataset_name=None, dataset_mixer=mixed)
    with pytest.raises(SimPOError, match="has pairs and .* has rows of messages; sources that are mixed"):
        run(loaded)


def test_the_token_of_the_hub_is_not_pickled():
    arguments = DPOArguments(output_dir="out", use_cpu=True, bf16=False, hub_token="hf_secret", report_to="none")
    assert b"hf_secret" not in pickle.dumps(arguments)


# --- Recipes ----------------------------------------------------------------------------------------------------------


def test_the_budget_carries_over(recipe):
    """Settings by their names, defaults that differ between SimPO's and trl's classes, and what follows from others."""
    ours, theirs = recipe(gradient_accumulation_steps=None), recipe("--method=dpo", gradient_accumulation_steps=None)
    baseline = theirs.baseline
    for name in (
        *(
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "num_train_epochs",
            "max_steps",
            "logging_steps",
            "seed",
        ),
        *(
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "gradient_checkpointing",
            "weight_decay",
            "bf16",
        ),
        *("max_grad_norm", "optim", "save_strategy", "report_to", "use_cpu", "adam_beta2", "mixed_precision"),
        *("logging_nan_inf_filter", "remove_unused_columns", "ddp_find_unused_parameters", "output_dir"),
    ):
        assert getattr(baseline, name) == getattr(ours.training.settled(), name), name
    assert (baseline.gradient_accumulation_steps, baseline.gradient_checkpointing) == (2, False)
    assert baseline.beta == theirs.resolved()["beta"] == 0.01
    assert "gamma_beta_ratio" not in theirs.resolved() and theirs.resolved()["method"] == "dpo"


def test_a_silent_recipe_has_the_usual_rate_of_the_method(recipe):
    assert recipe(method="dpo", learning_rate=None).baseline.learning_rate == 5e-7
    assert recipe(method="sft", learning_rate=None).baseline.learning_rate == 2e-5
    kept = recipe("--method=sft", learning_rate=1e-6)
    assert kept.baseline.learning_rate == 1e-6
    assert kept.notices == ["learning_rate: 1e-06 was written for method simpo and is kept; SFT usually takes 2e-5."]
    assert recipe("--method=sft", learning_rate=1e-5).notices == []


def test_a_beta_beside_the_method_counts(recipe):
    assert recipe(method="dpo", beta=0.1).baseline.beta == 0.1
    both = recipe("--method=dpo", "--beta=0.05", beta=2.0, gamma_beta_ratio=0.5)
    assert both.baseline.beta == 0.05
    [notice] = both.notices
    assert notice.startswith("gamma_beta_ratio: 0.5: written for method simpo and ignored under method dpo.")
    assert recipe("--beta=0.2", method="dpo", beta=0.1).baseline.beta == 0.2
    back = recipe("--method=simpo", method="dpo", beta=0.1, precompute_ref_log_probs=True)
    assert back.training.beta != 0.1 and back.baseline is None
    assert "precompute_ref_log_probs: true is left out: SimPO has no reference model" in back.notices[0]
    assert back.notices[1].startswith("beta: 0.1: written for method dpo and ignored under method simpo.")


def test_what_has_no_effect_is_named_in_one_warning(recipe):
    loaded = recipe(method="dpo", gamma_beta_ratio=0.5, sft_weight=0.1, average_log_prob=True, batch_layout="auto")
    [notice] = loaded.notices
    assert re.match(r"(?:\w+, ){3}\w+: no effect under method dpo\.", notice)
    for name in ("gamma_beta_ratio", "sft_weight", "average_log_prob", "batch_layout"):
        assert name in notice


def test_keys_of_dpo(recipe):
    loaded = recipe(
        method="dpo",
        precompute_ref_log_probs=True,
        ref_model_init_kwargs={"attn_implementation": "eager"},
        loss_type=["sigmoid", "ipo"],
        loss_weights=[0.7, 0.3],
    )
    assert (loaded.baseline.precompute_ref_log_probs, loaded.baseline.loss_type) == (True, ["sigmoid", "ipo"])
    assert loaded.baseline.loss_weights == [0.7, 0.3]
    assert loaded.notices == []
    assert own_keys("dpo") >= {"sync_ref_model", "ld_alpha", "f_divergence_type", "use_weighting"}
    assert not recipe("--no-precompute_ref_log_probs", method="dpo").baseline.precompute_ref_log_probs
    # Under SimPO they are what they were: left out, or unknown.
    hidden = recipe(method="dpo", ref_model_init_kwargs={"token": "hf_secret", "revision": "v1"})
    assert "hf_secret" not in str(hidden.resolved())
    assert "SimPO has no reference model" in recipe(precompute_ref_log_probs=True).notices[0]
    with pytest.raises(SimPOError, match="unknown key ld_alpha; it belongs to method: dpo"):
        recipe(ld_alpha=0.5)


def test_older_names_of_losses(recipe):
    loaded = recipe(method="dpo", loss_type="aot_pair")
    assert loaded.baseline.loss_type == ["aot"]
    assert loaded.notices == ["loss_type aot_pair is called aot by trl now, and is read as aot."]
    bare = recipe(method="dpo", loss_type="aot")
    assert bare.baseline.loss_type == ["aot"] and "aot_unpaired" in bare.notices[0]
    assert recipe(method="dpo", loss_type="aot_unpaired").notices == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dop"}, 'method is "dop"; it must be one of simpo, dpo, sft'),
        ({"method": "dpo", "loss_type": "sigmiod"}, "loss_type sigmiod is not a loss of DPO. Did you mean sigmoid"),
        ({"method": "dpo", "loss_type": "simpo"}, "loss_type simpo is not a loss of DPO. Set method: simpo."),
        (
            {"method": "dpo", "loss_type": ["sigmoid", "xyz"]},
            "xyz is not a loss of DPO. It must be one of sigmoid, hinge",
        ),
        ({"method": "dpo", "loss_type": ["ipo", "sft"], "loss_weights": [1.0]}, "loss_weights has 1 numbers for 2"),
        ({"method": "dpo", "loss_type": "exo_pair"}, "exo_pair needs a label_smoothing above 0"),
        ({"method": "dpo", "loss_type": "robust", "label_smoothing": 0.5}, r"it must lie in \[0, 0.5\)"),
        ({"method": "dpo", "beta": 0}, "beta is 0.0; it must be above 0"),
        (
            {"method": "dpo", "f_divergence_type": "foward_kl"},
            "one of reverse_kl, forward_kl, .* Did you mean forward_kl",
        ),
        ({"method": "dpo", "gradient_checkpointing_kwargs": {"reentrant": True}}, "has 'reentrant', which torch's"),
        ({"method": "dpo", "precompute_ref_logprobs": True}, "Did you mean precompute_ref_log_probs"),
        ({"method": "dpo", "streaming": True}, "method dpo needs the whole training set"),
        ({"method": "sft", "loss_type": "sigmoid"}, 'loss_type is "sigmoid"; it must be one of nll, dft'),
        ({"max_seq_length": 64}, "is a key of SFT files. Add method: sft"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(recipe, settings, message):
    with pytest.raises(SimPOError, match=message):
        recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 2.0}, "beta=2.0 is SimPO-sized. DPO sums log-probabilities"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect on sigmoid in trl; it belongs to robust"),
    ],
)
def test_numbers_that_are_likely_mistakes(recipe, settings, message):
    assert message in recipe(method="dpo", **settings).notices[0]


def test_a_trainer_of_simpo_is_not_left_out_in_silence(recipe):
    class Mine(SimPOTrainer):
        pass

    with pytest.raises(SimPOError, match="Mine trains by SimPO, and the recipe's method is dpo"):
        run(recipe(method="dpo"), Mine)


def test_what_trl_refuses_is_a_message(recipe):
    lora = {"use_peft": True, "lora_target_modules": "all-linear"}
    with pytest.raises(SimPOError, match="trl's DPOTrainer refuses these settings: You passed `sync_ref_model=True`"):
        run(recipe(method="dpo", sync_ref_model=True, **lora))


# --- Adapters ---------------------------------------------------------------------------------------------------------


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
