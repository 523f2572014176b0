"""A model with files of rows, and recipes on them."""

import json

import pytest
import yaml

from baselines import PAIRS
from models import (
    as_text,
    tiny_model,
    word_tokenizer,
)
from simpo_trainer.recipe.load import load_recipe


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
