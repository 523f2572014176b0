"""The line that a run prints for each log."""

import pytest

from models import random_pairs
from runs import make_trainer
from simpo_trainer.train.progress import log_line

TRAIN = {
    "loss": 0.68123,
    "rewards/accuracies": 0.625,
    "logps/margins": -0.1,
    "logps/chosen": -1.25,
    "logps/rejected": -1.15,
    "grad_norm": 3.456,
    "learning_rate": 5e-7,
    "logits/chosen": 0.3,
}


def test_a_training_log():
    assert log_line(TRAIN, 10, 400) == (
        "step 10/400  train  loss 0.6812  accuracy 0.625  margin -0.100  chosen -1.250  rejected -1.150  grad 3.46  "
        "lr 5.0e-07"
    )


def test_a_line_for_each_evaluation_set():
    logs = {
        f"eval_{name}_{key}": value + shift
        for name, shift in (("a", 0.0), ("b", 1.0))
        for key, value in (("loss", 0.5), ("rewards/accuracies", 0.25))
    }
    assert log_line(logs, 3, 9) == (
        "step 3/9  eval_a  loss 0.5000  accuracy 0.250\nstep 3/9  eval_b  loss 1.5000  accuracy 1.250"
    )


def test_no_line_for_other_logs():
    assert log_line({"train_runtime": 3.0, "train_loss": 0.4}, 9, 9) is None


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_one_line_a_log_with_or_without_a_progress_bar(tmp_path, capfd, disable_tqdm):
    make_trainer(tmp_path, random_pairs(4), per_device_train_batch_size=2, disable_tqdm=disable_tqdm).train()
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if line.startswith("step ")]
    assert [line.split()[:3] for line in lines] == [["step", "1/2", "train"], ["step", "2/2", "train"]]
    assert "{'loss'" not in captured.out
