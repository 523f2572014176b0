"""Engines that split the weights: what each process reads, holds and gathers, and in which precision it trains."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engines import command, environment, missing
from models import ARCHITECTURES, tiny_model, word_tokenizer
from sharded_worker import observe

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "support" / "sharded_worker.py"
ENGINES = ["FSDP2", "ZeRO-2", "ZeRO-3, zero.Init"]
# By name: arguments of the worker, but for folders. What is equal to one process has float32 and one step's pairs.
RUNS: dict[str, dict[str, Any]] = {
    "full": {"settings": {"max_steps": 3}},
    "short tiles": {"settings": {"max_steps": 1}, "tile": 4},
    "long tiles": {"settings": {"max_steps": 1}, "tile": 256},
    "adapted head, short tiles": {"settings": {"max_steps": 1}, "lora": {"target_modules": ["lm_head"]}, "tile": 4},
    "adapted head, long tiles": {"settings": {"max_steps": 1}, "lora": {"target_modules": ["lm_head"]}},
    "PiSSA": {"settings": {"max_steps": 3}, "lora": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}},
    "tied": {"settings": {"max_steps": 3}, "model": "tied"},
    "bf16": {"settings": {"max_steps": 3, "bf16": True}},
}


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
    for run in runs_in(folder, models, ["full", "PiSSA", "tied", "bf16"], per_device_train_batch_size=4):
        observe(**run)
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def split(request, tmp_path_factory, models):
    """The engine, and the folder of all runs by the same two processes in turn."""
    if package := missing(request.param):
        pytest.skip(f"{package} is not installed: make install-scale")
    folder = tmp_path_factory.mktemp("split")
    (folder / "runs.json").write_text(json.dumps(runs_in(folder, models, list(RUNS))))
    words = command(request.param, [str(folder / "runs.json")], 2, WORKER)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, folder


def seen(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / name / f"seen-{rank}.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(file)


def test_each_weight_is_read_once(split):
    """Eight processes of a machine would otherwise need its memory eight times."""
    engine, folder = split
    expected = {"FSDP2": [1, 0], "ZeRO-2": [1, 1], "ZeRO-3, zero.Init": [0, 0]}[engine]
    for name in ("full", "bf16", "adapted head, long tiles"):
        assert [seen(folder, name, rank)["loaded"] for rank in (0, 1)] == expected


@pytest.mark.parametrize("kind", ["", "adapted head, "])
def test_the_head_is_gathered_for_all_tiles_together(split, kind):
    """Two processes have different numbers of tiles, and would wait for each other for ever."""
    _, folder = split
    short, long = f"{kind}short tiles", f"{kind}long tiles"
    assert seen(folder, short)["gathers"] == seen(folder, long)["gathers"]
    assert seen(folder, short)["losses"] == pytest.approx(seen(folder, long)["losses"], abs=1e-6)


@pytest.mark.parametrize("name", ["full", "PiSSA", "tied"])
def test_the_answer_is_that_of_one_process(split, one_process, name):
    _, folder = split
    assert seen(folder, name)["losses"] == pytest.approx(seen(one_process, name)["losses"], abs=1e-5)
    found, expected = weights(folder / name), weights(one_process / name)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)


def test_bf16_computes_alone_in_16_bits(split, one_process):
    """The optimiser moves float32 weights: steps of 1e-6 would vanish in bfloat16. The losses are near, not equal."""
    engine, folder = split
    assert seen(folder, "bf16")["trained"] == ["torch.float32"]
    assert seen(folder, "bf16")["losses"] == pytest.approx(seen(one_process, "full")["losses"], abs=1e-2)
    assert seen(folder, "bf16")["losses"] != seen(folder, "full")["losses"]
    saved = {weight.dtype for weight in weights(folder / "bf16").values()}
    # DeepSpeed's model is a copy in 16 bits of the weights that are trained.
    assert saved == {torch.float32 if engine == "FSDP2" else torch.bfloat16}
