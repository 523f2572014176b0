"""Trains as one process of two until a signal stops it; the second sleeps once in its data; for `test_ranks.py`.

Arguments: a folder, the seconds that make a hang, and those that the second process sleeps.
"""

import os
import sys
import time

from datasets import IterableDataset

from models import random_pairs, tiny_model, word_tokenizer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.run.orphans import end_with_launcher
from simpo_trainer.train import hanging


def rows(seconds):
    pairs = random_pairs(16)
    for number in range(1_000_000):
        if number == 40 and os.environ["RANK"] == "1":
            time.sleep(seconds)
        yield pairs[number % 16]


def main():
    end_with_launcher()  # also where the test gives up waiting
    folder, hanging.LIMIT, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    settings = {"per_device_train_batch_size": 2, "max_length": 64, "max_prompt_length": 32, "logging_steps": 20}
    args = SimPOConfig(output_dir=folder, use_cpu=True, max_steps=100_000, save_strategy="no", **settings)
    data = IterableDataset.from_generator(rows, gen_kwargs={"seconds": seconds})
    trainer = SimPOTrainer(tiny_model(), args, train_dataset=data, processing_class=word_tokenizer())
    trainer.train()
    print("ended well" if trainer.interrupted else "ended")


if __name__ == "__main__":
    main()
