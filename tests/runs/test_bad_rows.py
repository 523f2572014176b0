"""A stream that fails in the middle of a run, whose batches a worker loads: one line, and the checkpoints stay."""

import json

import pytest

from models import as_text, random_pairs
from runs import write_run
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run

RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
streaming: true
output_dir: out
max_steps: 20
max_length: 64
save_steps: 2
per_device_train_batch_size: 4
learning_rate: 1e-3
use_cpu: true
report_to: none
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The recipe in a folder of its own, and a function that runs it."""
    write_run(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run(load_recipe("recipe.yaml", [*overrides]))


def lines(count=60):
    return [json.dumps(as_text(pair)) for pair in random_pairs(count)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_row_that_is_broken_behind_the_first_steps(command, tmp_path, workers):
    sound = [json.dumps({**json.loads(line), "note": "x" * 20_000}) for line in lines(2000)]  # beyond the first piece
    (tmp_path / "pairs.jsonl").write_text("\n".join([*sound, '{"prompt": ']))
    with pytest.raises(SimPOError) as caught:
        command("--max_steps", "600", "--save_steps", "50", "--dataloader_num_workers", workers)
    assert str(caught.value).startswith(f"{tmp_path}/pairs.jsonl, line 2001: not valid JSON")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").glob("checkpoint-*"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_stream_that_changed_is_not_gone_on_with(command, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines()))
    command("--max_steps", "4")
    for name in ("seal.json", "model.safetensors"):  # as of a run that was killed before its end
        (tmp_path / "out" / name).unlink()
    command("--max_steps", "4", "--resume_from_checkpoint", "auto")
    (tmp_path / "out" / "seal.json").unlink()
    (tmp_path / "pairs.jsonl").write_text("\n".join(reversed(lines())))
    with pytest.raises(SimPOError, match="the training pairs are not the same"):
        command("--max_steps", "4", "--resume_from_checkpoint", "auto")
