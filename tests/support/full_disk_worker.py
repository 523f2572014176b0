"""Trains as one process of two, of which the first has a full disk; started by `test_full_disk.py`.

Argument: a folder. Each process leaves in it what it was told, as `checkpoint-RANK` and `end-RANK`.
"""

import errno
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset

from models import random_pairs
from runs import make_trainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.run.orphans import end_with_launcher
from simpo_trainer.train import full_disk

FOLDER = Path(sys.argv[1])
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_strategy": "steps"}


def has_full_disk(trainer, step):
    """In the first process the model cannot be written from some step on."""
    real = trainer.model.save_pretrained

    def save(*args, **kwargs):
        if trainer.args.process_index == 0 and trainer.state.global_step >= step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    trainer.model.save_pretrained = save
    return trainer


def main():
    end_with_launcher()  # also where the test gives up waiting
    rows, held_out = random_pairs(16), Dataset.from_list(random_pairs(8, seed=1))
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
    trainer = has_full_disk(make_trainer(FOLDER / "first", rows, eval_dataset=held_out, **EVALUATED, **settings), 4)
    rank = trainer.args.process_index
    try:
        trainer.train()
    except SimPOError as error:
        (FOLDER / f"checkpoint-{rank}").write_text(str(error))
    trainer = has_full_disk(make_trainer(FOLDER / "second", rows, max_steps=1, per_device_train_batch_size=4), 1)
    trainer.train()

    def pause(stop):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    full_disk.pause = pause
    try:
        trainer.finish()
    except SystemExit as ended:
        (FOLDER / f"end-{rank}").write_text(str(ended.code))


if __name__ == "__main__":
    main()
