"""Loads and trains models under an engine, and tells what each process held and gathered; for `test_sharded_paths.py`.

Argument: a JSON file of runs, each the arguments of :func:`observe`.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from models import random_pairs, word_tokenizer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.model import head
from simpo_trainer.model.load import load_model


class Gathers(TorchDispatchMode):
    """Counts the gathers of weights by the number of elements that they make."""

    def __init__(self):
        super().__init__()
        self.sizes: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "allgather" in str(function) or "all_gather" in str(function):
            self.sizes[max(each.numel() for each in args if isinstance(each, torch.Tensor))] += 1
        return function(*args, **(kwargs or {}))


def observe(model: str, folder: str, settings: dict[str, Any], lora: dict[str, Any] | None = None, tile: int = 256):
    """Train on four pairs, and write what was seen into the folder.

    Args:
        model: its folder.
        folder: the run's own.
        settings: of `SimPOConfig`.
        lora: of `LoraConfig`.
        tile: positions of a tile of logits.
    """
    head.TILE_POSITIONS = tile
    adapter = LoraConfig(**lora) if lora else None
    usual = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": 2}
    args = SimPOConfig(output_dir=folder, **{**usual, **settings})
    loaded = load_model(model, args, adapter_follows=adapter is not None, bf16=bool(args.bf16))
    here = sum(weight.numel() for weight in loaded.parameters() if not weight.is_meta)
    total = sum(getattr(weight, "ds_numel", weight.numel()) for weight in loaded.parameters())
    pairs = Dataset.from_list(random_pairs(4))
    trainer = SimPOTrainer(
        loaded,
        args,
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=word_tokenizer(),
        peft_config=adapter,
    )
    gathers = Gathers()
    step = trainer.training_step

    def counted(*given: Any, **named: Any) -> Any:
        with gathers:
            return step(*given, **named)

    trainer.training_step = counted
    trainer.train()
    trainer.save_model()
    seen = {
        "loaded": here / total,
        "gathers": sorted(gathers.sizes.items()),
        "trained": sorted({str(weight.dtype) for weight in _optimised(trainer)}),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }
    (Path(folder) / f"seen-{args.process_index}.json").write_text(json.dumps(seen))


def _optimised(trainer: SimPOTrainer) -> list[torch.Tensor]:
    """The weights that the optimiser moves; DeepSpeed's are flat copies of the model's."""
    inner = trainer.optimizer.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(inner, name):
            return getattr(inner, name)
    return [weight for group in inner.param_groups for weight in group["params"]]


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[1]).read_text()):
        observe(**run)
