"""`run_manifest.json`: there from the start, complete at the end, true, and without anything private."""

import json
import pickle
import platform
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback

from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer, train_log
from simpo_trainer import SimPOConfig
from simpo_trainer.recipe.facts import recipe_facts
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.record import peak_memory as memory
from simpo_trainer.record.fingerprints import row_hashes, rows_fingerprint, tokenizer_fingerprint
from simpo_trainer.record.manifest import final_metrics


def described(trainer):
    return trainer.facts().public()


def read(folder):
    return json.loads((folder / "run_manifest.json").read_text())


class Peek(TrainerCallback):
    """Reads the manifest after the first step, when a run may be killed."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.found = read_folder(args.output_dir)


def read_folder(folder):
    with open(f"{folder}/run_manifest.json") as file:
        return json.load(file)


def test_a_killed_run_leaves_a_manifest_and_a_finished_one_its_results(tmp_path):
    rows = random_pairs(10)
    peek = Peek()
    trainer = make_trainer(
        tmp_path, rows, eval_dataset=Dataset.from_list(rows[:4]), max_steps=3, arguments={"callbacks": [peek]}
    )
    trainer.train()
    early = peek.found
    assert (early["status"], early["finished"], early["results"]) == ("running", None, {"steps": 0, "metrics": {}})
    assert early["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert early["versions"]["python"] == platform.python_version()
    assert early["hardware"]["processes"] == 1
    assert early["seeds"] == {"seed": 42, "data_seed": None, "full_determinism": False}
    assert early["simpo"]["beta"] == 2.0 and early["simpo"]["gamma_beta_ratio"] == 0.5
    assert early["batch"] == {
        "global": 8,
        "per_device": 8,
        "processes": 1,
        "accumulation": 1,
        "layout": "packed",
        "optimiser_steps": 3,
        "epochs": 2,
    }
    assert early["model"]["parameters"] == early["model"]["trained_parameters"] == trainer.model.num_parameters()
    assert (early["model"]["class"], early["model"]["trained_dtype"]) == ("LlamaForCausalLM", "float32")
    assert early["model"]["attention"] == "sdpa"
    assert early["recipe"] is None and early["data"]["sources"] == []
    assert early["data"]["sets"]["train"]["rows"] == 10 and early["data"]["sets"]["eval"]["rows"] == 4

    late = read(tmp_path)
    assert late["status"] == "finished" and late["finished"] >= late["started"]
    assert late["results"]["steps"] == 3
    assert late["results"]["metrics"]["train_loss"] == trainer.state.log_history[-1]["train_loss"]
    assert "eval_loss" not in late["results"]["metrics"]
    metrics = trainer.evaluate()
    assert read(tmp_path)["results"]["metrics"]["eval_loss"] == metrics["eval_loss"]
    changed = ("status", "finished", "results", "peak_memory", "end", "findings")
    assert {k: v for k, v in late.items() if k not in changed} == {k: v for k, v in early.items() if k not in changed}


def test_the_untrained_model_and_the_peak_of_memory_are_recorded(tmp_path):
    rows, peek = random_pairs(10), Peek()
    trainer = make_trainer(tmp_path, rows, max_steps=2, arguments={"callbacks": [peek]})
    expected = trainer.measure(trainer.rows_to_measure(64))
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    trainer.train()
    assert peek.found["start"] == read(tmp_path)["start"] == pytest.approx(expected)
    assert peek.found["start"]["logps/chosen"] != train_log(trainer, "logps/chosen")[-1][0]
    assert peek.found["peak_memory"] is None
    peak = read(tmp_path)["peak_memory"]
    # The system counts the two in different ways, a few pages apart.
    assert peak["of"] == "process" and 0.9 * resident < peak["bytes"] < 100 * resident


@pytest.mark.parametrize(("settings", "unit"), [({}, "nats per token"), ({"loss_type": "slic"}, "nats")])
def test_the_unit_of_log_probs_is_recorded(tmp_path, settings, unit):
    assert described(make_trainer(tmp_path, random_pairs(8), **settings))["log_prob_unit"] == unit


def test_the_peak_of_memory_is_the_largest_of_all_processes(monkeypatch):
    class TwoProcesses:
        device = torch.device("cpu")

        def gather(self, own):
            return torch.cat([own, torch.tensor([7])])

    monkeypatch.setattr(memory, "_peak_of_process", lambda: 5)
    assert memory.peak_memory(TwoProcesses()) == {"bytes": 7, "of": "process"}


def test_on_an_accelerator_the_peak_is_that_of_its_tensors_since_the_start_of_training(monkeypatch):
    device, peak, reset = torch.device("cuda", 1), {1: 300}, []
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: peak[device.index])
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda device: reset.append(device.index))
    memory.forget_peak(device)
    assert reset == [1]

    class OneProcess:
        def __init__(self):
            self.device = device

        def gather(self, own):
            return own

    monkeypatch.setattr(torch, "tensor", lambda values, *, dtype, device, make=torch.tensor: make(values, dtype=dtype))
    assert memory.peak_memory(OneProcess()) == {"bytes": 300, "of": "accelerator"}


def test_a_system_that_does_not_tell_its_memory_stops_nothing(monkeypatch):
    def uncounted(device):
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", uncounted)
    memory.forget_peak(torch.device("mps"))
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_memory(Accelerator(cpu=True)) is None


def test_an_interrupted_run_says_so(tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.stop_request.number = signal.SIGINT

    trainer = make_trainer(tmp_path, random_pairs(10), max_steps=4, arguments={"callbacks": [Interrupt()]})
    trainer.train()
    assert trainer.interrupted
    found = read(tmp_path)
    assert found["status"] == "interrupted" and found["results"]["steps"] < 4


def test_dropped_rows_are_counted(tmp_path):
    good, empty = as_text(random_pairs(3)[0]), {"prompt": "w3", "chosen": " w4", "rejected": " "}
    trainer = make_trainer(tmp_path, [good, good, good, empty])
    found = described(trainer)["data"]["sets"]["train"]
    assert found["rows"] == 3
    notes = found["tokenization"]
    assert (notes["rows_read"], notes["rows_kept"], notes["dropped"]) == (4, 3, {"empty_answer": 1})


def test_a_recipe_is_told_with_its_origins_and_without_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_model().save_pretrained(tmp_path / "base")
    (tmp_path / "mine.yaml").write_text(
        f"model_name_or_path: {tmp_path}/base\ndataset_name: org/pairs\noutput_dir: {tmp_path}/out\nbeta: 2.5\n"
    )
    recipe = load_recipe(tmp_path / "mine.yaml", ["--hub_token", "hf_secret", "--seed", "7"])
    trainer = make_trainer(tmp_path / "out", random_pairs(8), model=str(tmp_path / "base"))
    trainer.recipe_facts = recipe_facts(recipe)
    found = described(trainer)
    assert found["recipe"] == {
        "name": "mine.yaml",
        "settings": {
            "model_name_or_path": "local folder 'base'",
            "dataset_name": "org/pairs",
            "beta": 2.5,
            "seed": 7,
        },
        "origins": {
            "model_name_or_path": "mine.yaml:1",
            "dataset_name": "mine.yaml:2",
            "beta": "mine.yaml:4",
            "seed": "command line",
        },
        "defaults": {"model_name_or_path": None, "dataset_name": None, "beta": 2.0, "seed": 42},
    }
    assert [source["name"] for source in found["data"]["sources"]] == ["org/pairs"]
    assert (found["model"]["name"], found["model"]["label"]) == (None, "local folder 'base'")
    text = json.dumps(found)
    assert str(tmp_path) not in text and "hf_secret" not in text


def test_an_adapter_is_told(tmp_path):
    trainer = make_trainer(
        tmp_path, random_pairs(8), arguments={"peft_config": LoraConfig(r=3, target_modules=["q_proj"])}
    )
    model = described(trainer)["model"]
    assert model["adapter"]["r"] == 3 and model["adapter"]["target_modules"] == ["q_proj"]
    assert model["class"] == "LlamaForCausalLM"
    assert 0 < model["trained_parameters"] < model["parameters"]


def test_the_last_value_of_each_metric_is_final():
    log = [
        {"step": 1, "loss": 2.0, "eval_loss": 3.0},
        {"step": 2, "loss": 1.0, "epoch": 1.0},
        {"step": 2, "train_loss": 1.5},
    ]
    assert final_metrics(log) == {"loss": 1.0, "eval_loss": 3.0, "train_loss": 1.5}


def test_a_tokenizer_is_known_by_what_it_does_not_by_its_place(tmp_path):
    tokenizer = word_tokenizer()
    known = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again(["w3 w4", "w5"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(again) == known
    again.add_tokens(["w999"])
    assert tokenizer_fingerprint(again) != known


def test_rows_are_known_by_their_tokens_and_their_order():
    rows = random_pairs(5)
    known = rows_fingerprint(Dataset.from_list(rows))
    assert rows_fingerprint(Dataset.from_list([*rows, *rows]).select(range(5, 10))) == known
    assert rows_fingerprint(Dataset.from_list(rows[::-1])) != known
    # A token that changes sides leaves the tokens of all rows together as they are.
    moved = [{**row} for row in rows]
    last = moved[0]["chosen_ids"][-1]
    moved[0]["chosen_ids"], moved[1]["chosen_ids"] = moved[0]["chosen_ids"][:-1], [last, *moved[1]["chosen_ids"]]
    assert rows_fingerprint(Dataset.from_list(moved)) != known
    assert rows_fingerprint(rows) is None


def test_rows_have_equal_hashes_only_where_all_their_texts_are_equal():
    pairs = [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]},
        {"prompt_ids": [1], "chosen_ids": [2, 3]},
    ]
    pairs[1]["rejected_ids"] = [4, 5]  # the same ids in the same order, but for where a text ends
    first, second, third = row_hashes(Dataset.from_list([*pairs, pairs[0]]))
    assert first == third != second
    assert list(row_hashes(Dataset.from_list([*pairs, *pairs]).select(range(1, 4)))) == [second, first, second]
    ranked = [
        {"prompt_ids": [1], "chosen": [0], "rejected": [1], "response_ids": ids} for ids in ([[2], [3]], [[2, 3], []])
    ]
    assert len(set(row_hashes(Dataset.from_list(ranked * 2)))) == 2
    assert row_hashes(pairs) is None


@pytest.mark.parametrize("token", ["hf_secret", None])
def test_pickled_settings_hold_no_token(tmp_path, token):
    args = SimPOConfig(output_dir=str(tmp_path), hub_token=token, beta=2.5)
    assert b"hf_secret" not in pickle.dumps(args)
    assert args.hub_token == token
    assert pickle.loads(pickle.dumps(args)).beta == 2.5
