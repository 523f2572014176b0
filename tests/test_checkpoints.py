"""What a checkpoint must hold before a run goes on from it."""

import pytest

from models import random_pairs
from runs import make_trainer
from simpo_trainer.checkpoints import check_resumable
from simpo_trainer.errors import SimPOError


@pytest.mark.parametrize("file", ["optimizer.pt", "optimizer_0/shard", "global_step3/state", "pytorch_model_fsdp_0/w"])
def test_a_checkpoint_with_optimiser_state(tmp_path, file):
    (tmp_path / "trainer_state.json").touch()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    check_resumable(tmp_path)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(SimPOError, match="is not a checkpoint: it has no trainer_state.json. Name a checkpoint-N"):
        check_resumable(tmp_path)


def test_a_checkpoint_of_the_model_only_is_refused(tmp_path):
    """It would go on with a fresh optimiser, without a word."""
    rows = random_pairs(8)
    make_trainer(tmp_path, rows, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True).train()
    again = make_trainer(tmp_path, rows, max_steps=2)
    with pytest.raises(SimPOError, match="holds no optimiser state .*Resume from a full checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
