"""Engines that split the weights: what each process reads, holds and gathers, and in which precision it trains."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engines import OFFLOADS, command, environment, missing
from models import ARCHITECTURES, tiny_model, word_tokenizer
from sharded_worker import observe
from simpo_trainer.record.samples import read_samples

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "support" / "sharded_worker.py"
ENGINES = ["FSDP2", "ZeRO-2", "ZeRO-3, zero.Init"]
# The model of the first step is the best one.
BEST = {
    **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
    **{"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True},
    "sample_prompts": 3,
}
# By name: arguments of the worker, but for folders. What is equal to one process has float32 and one step's pairs.
RUNS: dict[str, dict[str, Any]] = {
    "full": {"settings": {"max_steps": 3}},
    "short tiles": {"settings": {"max_steps": 1}, "tile": 4},
    "long tiles": {"settings": {"max_steps": 1}, "tile": 256},
    "adapted head, short tiles": {"settings": {"max_steps": 1}, "lora": {"target_modules": ["lm_head"]}, "tile": 4},
    "adapted head, long tiles": {"settings": {"max_steps": 1}, "lora": {"target_modules": ["lm_head"]}},
    "PiSSA": {"settings": {"max_steps": 3}, "lora": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}},
    "tied": {"settings": {"max_steps": 3}, "model": "tied"},
    "best": {"settings": {"max_steps": 3, **BEST}},
    "best LoRA": {"settings": {"max_steps": 3, **BEST}, "lora": {"target_modules": ["q_proj"]}},
    "bf16": {"settings": {"max_steps": 3, "bf16": True}},
}
# Trained by one process too.
ALIKE = ["full", "PiSSA", "tied", "best", "best LoRA"]


def runs_in(folder: Path, models: Path, names: list[str], **more: Any) -> list[dict[str, Any]]:
    steady = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0, "adam_epsilon": 1e-4}
    return [
        {
            **RUNS[name],
            "folder": str(folder / name),
            "model": str(models / RUNS[name].get("model", "model")),
            "settings": {**steady, **RUNS[name]["settings"], **more},
        }
        for name in names
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("model", tiny_model()), ("tied", tiny_model(ARCHITECTURES["qwen3-tied"]()))):
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("one")
    for run in runs_in(folder, models, ALIKE, per_device_train_batch_size=4):
        observe(**run)
    return folder


def seen(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / name / f"seen-{rank}.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(file)


@pytest.mark.parametrize("engine", ENGINES)
def test_split_weights(tmp_path, models, one_process, engine):
    """All runs are made by the same two processes in turn, which saves their start."""
    train(engine, tmp_path, models, list(RUNS))
    _each_weight_is_read_once(engine, tmp_path)
    _the_head_is_gathered_for_all_tiles_together(tmp_path)
    for name in ALIKE:
        _the_answer_is_that_of_one_process(tmp_path, one_process, name)
    _samples_are_those_of_one_process(tmp_path, one_process, "best")
    _bf16_computes_alone_in_16_bits(engine, tmp_path, one_process)


@pytest.mark.parametrize("engine", OFFLOADS)
def test_weights_in_the_memory_of_the_machine_train_alike(tmp_path, models, one_process, engine):
    """Under FSDP2 with checkpoints in parts, of which the best is loaded at the end."""
    train(engine, tmp_path, models, ["full", "best"])
    for name in ("full", "best"):
        _the_answer_is_that_of_one_process(tmp_path, one_process, name)


def train(engine: str, folder: Path, models: Path, names: list[str]) -> None:
    if package := missing(engine):
        pytest.skip(f"{package} is not installed: make install-scale")
    (folder / "runs.json").write_text(json.dumps(runs_in(folder, models, names)))
    words = command(engine, [str(folder / "runs.json")], 2, WORKER)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def _each_weight_is_read_once(engine: str, folder: Path) -> None:
    """Eight processes of a machine would otherwise need its memory eight times."""
    expected = {"FSDP2": [1, 0], "ZeRO-2": [1, 1], "ZeRO-3, zero.Init": [0, 0]}[engine]
    for name in ("full", "bf16", "adapted head, long tiles"):
        assert [seen(folder, name, rank)["loaded"] for rank in (0, 1)] == expected


def _the_head_is_gathered_for_all_tiles_together(folder: Path) -> None:
    """Two processes have different numbers of tiles, and would wait for each other for ever."""
    for kind in ("", "adapted head, "):
        short, long = seen(folder, f"{kind}short tiles"), seen(folder, f"{kind}long tiles")
        assert short["gathers"] == long["gathers"], kind
        assert short["losses"] == pytest.approx(long["losses"], abs=1e-6)


def _the_answer_is_that_of_one_process(folder: Path, one_process: Path, name: str) -> None:
    assert seen(folder, name)["losses"] == pytest.approx(seen(one_process, name)["losses"], abs=1e-5), name
    found, expected = weights(folder / name), weights(one_process / name)
    assert found.keys() == expected.keys(), name
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5, msg=f"{name}: {key}")


def _samples_are_those_of_one_process(folder: Path, one_process: Path, name: str) -> None:
    """Three prompts for two processes: both make as many forwards, and each answer comes back to its prompt."""
    found, expected = (read_samples(each / name / "samples.jsonl") for each in (folder, one_process))
    assert [row["step"] for row in found] == [step for step in range(4) for _ in range(3)]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in expected]
    # Later the weights are equal to rounding, and so may the likeliest token be.
    assert found[:3] == expected[:3]


def _bf16_computes_alone_in_16_bits(engine: str, folder: Path, one_process: Path) -> None:
    """The optimiser moves float32 weights: steps of 1e-6 would vanish in bfloat16. The losses are near, not equal."""
    found = seen(folder, "bf16")
    assert found["trained"] == ["torch.float32"]
    assert found["losses"] == pytest.approx(seen(one_process, "full")["losses"], abs=1e-2)
    assert found["losses"] != seen(folder, "full")["losses"]
    saved = {weight.dtype for weight in weights(folder / "bf16").values()}
    # DeepSpeed's model is a copy in 16 bits of the weights that are trained.
    assert saved == {torch.float32 if engine == "FSDP2" else torch.bfloat16}
