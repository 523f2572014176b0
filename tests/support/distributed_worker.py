"""Trains tiny models as one process of several, one run after the other; started by tests in `tests/runs`.

Arguments: number of processes that must be there, and a JSON file of runs, each the arguments of :func:`train_once`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from models import ARCHITECTURES, random_pairs, random_ranked, tiny_model, word_tokenizer
from simpo_trainer import SimPOConfig, SimPOTrainer


def train_once(folder: str, world_size: int, num_rows: int, settings: dict[str, Any]) -> None:
    """Train on so many rows and write what was seen into the folder.

    Args:
        folder: the run's own, for its outputs and `seen.json`.
        world_size: processes that must be there.
        num_rows: rows to train on, and to evaluate on.
        settings: of `SimPOConfig`, and what to train: `lora`, `stream`, `experts`, `ranked`; `resume`, a checkpoint.
    """
    options = dict(settings)
    peft_config = LoraConfig(r=4, target_modules="all-linear") if options.pop("lora", False) else None
    streams, checkpoint = options.pop("stream", False), options.pop("resume", None)
    config = None
    if options.pop("experts", False):
        config = ARCHITECTURES["mixtral"]()
        config.output_router_logits, config.router_aux_loss_coef = True, 0.5
    make_rows = random_ranked if options.pop("ranked", False) else random_pairs
    # With DeepSpeed set up, which the run before did, each weight would be split as soon as it is made.
    unset_hf_deepspeed_config()
    model = tiny_model(config)
    usual = {"num_train_epochs": 2, "logging_steps": 1, "eval_strategy": "epoch", "save_strategy": "no"}
    args = SimPOConfig(output_dir=folder, **{**usual, **options})
    assert args.world_size == world_size, f"{args.world_size} processes, not {world_size}"
    pairs = Dataset.from_list(make_rows(num_rows))
    train = pairs.to_iterable_dataset() if streams else pairs
    trainer = SimPOTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=pairs,
        processing_class=word_tokenizer(),
        compute_metrics=lambda prediction: {"predictions": prediction.predictions.tolist()},
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if args.process_index == 0:
        (Path(folder) / "seen.json").write_text(json.dumps({"history": trainer.state.log_history}))


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[2]).read_text()):
        train_once(run["folder"], int(sys.argv[1]), run["num_rows"], run["settings"])
