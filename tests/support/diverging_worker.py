"""Trains as one process of several on rows of which one has an infinite loss; started by `test_distributed.py`.

Argument: a folder, for what each process says and whether its weights are still those of the start.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from models import random_pairs
from runs import make_trainer, weights_of
from simpo_trainer import SimPOTrainer
from simpo_trainer.errors import SimPOError


class LastRowDiverges(SimPOTrainer):
    """The loss of a pair with a large margin is infinite."""

    def pair_loss(self, chosen, rejected, *, margin: Tensor) -> Tensor:
        losses = super().pair_loss(chosen, rejected, margin=margin.clamp(max=1))
        return losses + torch.where(margin > 1, torch.inf, 0.0)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rows = [{**row, "margin": 9.0 * (place == 3)} for place, row in enumerate(random_pairs(4))]
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = make_trainer(folder, rows, trainer_class=LastRowDiverges, **split)
    before, said = weights_of(trainer), ""
    try:
        trainer.train()
    except SimPOError as error:
        said = str(error)
    after = weights_of(trainer)
    unchanged = all(torch.equal(after[name], weight) for name, weight in before.items())
    rank = trainer.args.process_index
    (folder / f"said-{rank}.json").write_text(json.dumps({"said": said, "unchanged": unchanged}))
