"""Two machines that train together: network namespaces with a launcher in each, against one process."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from models import random_pairs
from runs import assert_same_weights, write_run
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run
from simpo_trainer.train.lock import LOCK
from two_hosts import MAIN, ended, missing, two_hosts, wait_for

pytestmark = pytest.mark.slow

RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
global_batch_size: 8
per_device_train_batch_size: 4
optim: sgd
learning_rate: 0.005
lr_scheduler_type: constant
warmup_steps: 0
max_grad_norm: 0.0
max_steps: 120
logging_steps: 20
save_strategy: steps
save_steps: 20
use_cpu: true
report_to: none
"""
TOGETHER = ("--launcher", "ddp", "--num-processes", "2", "--num-machines", "2", "--main-process-ip", MAIN)
COMMAND = ("recipe.yaml", *TOGETHER, "--main-process-port", "29777")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a recipe, and the weights of one process with the same global batch."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("prepared")
    write_run(folder, RECIPE, random_pairs(24))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(load_recipe("recipe.yaml", ["--output_dir", "alone", "--save_strategy", "no"]))
    return folder, load_file(folder / "alone" / "model.safetensors")


@pytest.fixture
def hosts(prepared, tmp_path):
    folder, expected = prepared
    for name in ("recipe.yaml", "pairs.jsonl"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "model", tmp_path / "model")
    with two_hosts(tmp_path) as found:
        found.expected = expected
        yield found


def assert_ends_as_one_process(hosts):
    out = hosts.folder / "out"
    assert_same_weights(load_file(out / "model.safetensors"), hosts.expected, tolerance=1e-5)
    manifest = json.loads((out / "run_manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["hardware"]["processes"] == 2
    assert json.loads((out / "seal.json").read_text())["finished"]
    assert not (out / LOCK).exists()


def test_machines_with_ranks(hosts):
    """Both launchers end with 0 and say so."""
    folder = hosts.folder
    started = [hosts.start(rank, f"log-{rank}", *COMMAND, "--machine-rank", str(rank)) for rank in (1, 0)]
    for process, rank in zip(started, (1, 0), strict=True):
        output = ended(process, folder / f"log-{rank}")
        assert output.rstrip().endswith("rank 0 has saved what was trained.")
    assert "Done: model, tokenizer and metrics are in out" in (folder / "log-0").read_text()
    assert_ends_as_one_process(hosts)


def test_a_machine_that_is_lost_comes_back(hosts):
    """Without ranks: the launcher that is left waits for the same command on the lost machine."""
    folder = hosts.folder
    command = (*COMMAND, "--max-restarts", "1")
    first = hosts.start(0, "log-0", *command)
    second = hosts.start(1, "log-1", *command)
    wait_for(folder / "out" / "checkpoint-40", first, folder / "log-0")  # the one before is whole by then
    hosts.lose(1)
    assert second.wait(20)
    assert not (folder / "out" / "seal.json").exists()
    again = hosts.start(1, "log-again", *command)
    assert ended(first, folder / "log-0").count("Going on from out/checkpoint-") == 1
    ended(again, folder / "log-again")
    assert_ends_as_one_process(hosts)
