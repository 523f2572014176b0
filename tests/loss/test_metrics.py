"""Metrics as sums and counts, worked out by hand."""

import math

import pytest
import torch
from accelerate import Accelerator

from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.loss.metrics import MetricSums, PairRecords, pair_metrics
from simpo_trainer.model.scoring import AnswerScores


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def scores(sums: list[float], lengths: list[float], logits: list[float]) -> AnswerScores:
    """Answers with these log-probabilities, lengths and sums of mean logits."""
    total, length = torch.tensor(sums), torch.tensor(lengths)
    return AnswerScores(sum=total, average=total / length, length=length, logits_sum=torch.tensor(logits))


# Pair 0: averages -1 and -2.5. Pair 1: averages -2 and -1.5, the rejected answer likelier. Pair 2 is filler.
CHOSEN = scores([-2.0, -8.0, math.nan], [2.0, 4.0, 3.0], [1.0, 5.0, math.inf])
REJECTED = scores([-5.0, -1.5, -1.0], [2.0, 1.0, 1.0], [0.5, 1.0, 7.0])
WEIGHT = torch.tensor([1.0, 1.0, 0.0])
LOSSES = torch.tensor([0.25, 1.5, math.nan])


def means(accelerator, **options) -> dict[str, float]:
    arguments = {
        "logps": (CHOSEN.average, REJECTED.average),
        "losses": LOSSES,
        "parts": {},
        "margin": torch.tensor([0.5, 0.5, 0.5]),
        "weight": WEIGHT,
        "beta": 2.0,
        "sft_reduction": "sequence",
        **options,
    }
    sums = MetricSums()
    sums.add(pair_metrics(CHOSEN, REJECTED, **arguments))
    return sums.reduce(accelerator)


def test_every_metric_by_hand(accelerator):
    """Means over the two real pairs, of logits over their answer tokens; filler stays out though it is not finite."""
    assert means(accelerator) == pytest.approx(
        {
            "preference_loss": (0.25 + 1.5) / 2,
            "sft_loss": (1 + 2) / 2,
            "rewards/chosen": 2 * (-1 - 2) / 2,
            "rewards/rejected": 2 * (-2.5 - 1.5) / 2,
            "rewards/accuracies": 0.5,
            "rewards/margins": 2 * (1.5 - 0.5) / 2,
            "logps/chosen": -1.5,
            "logps/rejected": -2.0,
            "logps/margins": 0.5,
            "logps/past_target": 0.5,
            "lengths/chosen": 3.0,
            "lengths/rejected": 1.5,
            "logits/chosen": (1 + 5) / (2 + 4),
            "logits/rejected": (0.5 + 1) / (2 + 1),
        }
    )


def test_token_mean_of_the_sft_loss(accelerator):
    assert means(accelerator, sft_reduction="token")["sft_loss"] == pytest.approx((2 + 8) / (2 + 4))


def test_summed_log_probabilities(accelerator):
    """Rewards follow what the loss compares; the SFT loss stays per token."""
    found = means(accelerator, logps=(CHOSEN.sum, REJECTED.sum), margin=torch.tensor([3.5, 0.0, 0.0]))
    assert found["rewards/chosen"] == pytest.approx(2 * (-2 - 8) / 2)
    assert found["logps/margins"] == pytest.approx((3 - 6.5) / 2)
    assert found["logps/past_target"] == 0
    assert found["rewards/accuracies"] == 0.5
    assert found["sft_loss"] == pytest.approx(1.5)


def test_parts_of_a_mix_and_no_target(accelerator):
    found = means(accelerator, margin=None, parts={"ipo": torch.tensor([1.0, 2.0, math.nan])})
    assert found["losses/ipo"] == 1.5 and "logps/past_target" not in found
    assert means(accelerator, sft_reduction="sum")["sft_loss"] == (2 + 8) / 2


def test_equal_answers_are_no_success(accelerator):
    same = scores([-2.0], [2.0], [0.0])
    sums = MetricSums()
    zero = torch.zeros(1)
    arguments = {
        "losses": zero,
        "parts": {},
        "margin": zero,
        "weight": zero + 1,
        "beta": 2.0,
        "sft_reduction": "sequence",
    }
    sums.add(pair_metrics(same, same, logps=(same.average, same.average), **arguments))
    found = sums.reduce(accelerator)
    assert found["rewards/accuracies"] == found["logps/past_target"] == 0


def test_sums_are_means_over_everything_added_since_the_last_reduction(accelerator):
    """Uneven parts count by their size, not one each."""
    sums = MetricSums()
    sums.add({"a": torch.tensor([6.0, 3.0]), "b": torch.tensor([1.0, 1.0])})
    sums.add({"a": torch.tensor([2.0, 1.0])})
    assert sums.reduce(accelerator) == {"a": 8 / 4, "b": 1.0}
    sums.add({"a": torch.tensor([5.0, 1.0])})
    assert sums.reduce(accelerator) == {"a": 5.0}
    assert sums.reduce(accelerator) == {}


def test_a_metric_without_pairs_is_left_out(accelerator):
    sums = MetricSums()
    sums.add({"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([3.0, 2.0])})
    assert sums.reduce(accelerator) == {"b": 1.5}


def test_sums_neither_lose_precision_nor_keep_the_graph(accelerator):
    """In float32, ones added to 2**24 would be lost."""
    sums = MetricSums()
    value = torch.tensor([2.0**24, 1.0], requires_grad=True)
    sums.add({"a": value})
    for _ in range(5):
        sums.add({"a": torch.tensor([1.0, 0.0])})
    assert sums.reduce(accelerator) == {"a": 2.0**24 + 5}


def test_records_come_back_in_order_without_filler(accelerator):
    """Log-probabilities and lengths as (chosen, rejected) of each pair, whatever the numbers of the rows."""
    pair = {"prompt_ids": [1], "chosen_ids": [3, 2], "rejected_ids": [2]}
    records = PairRecords()
    second = PairCollator()([{**pair, "index": 5}, {**pair, "index": 7, "weight": 0.0}])
    records.add(second, torch.tensor([[-5.0, -5.5], [-7.0, -7.5]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    first = PairCollator()([{**pair, "index": 2, "prompt_ids": [1, 4]}])
    records.add(first, torch.tensor([[-2.0, -2.5]]), torch.tensor([[2.0, 3.0]]))
    logps, lengths, tokens = records.gather(accelerator)
    assert logps.tolist() == [[-2.0, -2.5], [-5.0, -5.5]]
    assert lengths.tolist() == [[2, 3], [5, 6]] and lengths.dtype.kind == "i"
    assert tokens.tolist() == [2 + 2 + 2 + 1, 1 + 2 + 1 + 1]
