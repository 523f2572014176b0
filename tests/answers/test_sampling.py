"""Sampling by prompt, seed and position: its distribution, and that nothing else changes it."""

import pytest
import torch
from transformers import TopPLogitsWarper

from simpo_trainer import SimPOError
from simpo_trainer.answers.sampling import KeyedSampling, nucleus, uniform

_MASK = (1 << 64) - 1


def splitmix(number: int) -> int:
    """The finaliser of SplitMix64, in Python's whole numbers."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def test_the_number_of_a_row_is_that_of_the_hash():
    """In whole numbers without a sign."""
    golden = 0x9E3779B97F4A7C15
    keys = [5, -(2**63)]
    for key, found in zip(keys, uniform(torch.tensor(keys), 11).tolist(), strict=True):
        start = splitmix((key + (12 * (golden - 2**64)) % (1 << 63)) & _MASK)
        assert found == ((splitmix((start + golden) & _MASK) >> 12) + 0.5) / 2**52


def test_the_numbers_are_spread_evenly_and_neighbours_are_not_alike():
    found = torch.stack([uniform(torch.arange(2000), position) for position in range(100)])
    assert 0 < found.min() and found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=0.003) and found.var().item() == pytest.approx(
        1 / 12, abs=0.001
    )
    for near in ((found[1:], found[:-1]), (found[:, 1:], found[:, :-1])):
        assert abs(torch.corrcoef(torch.stack([each.flatten() for each in near]))[0, 1].item()) < 0.01


@pytest.mark.parametrize("by", ["key", "position"])
def test_samples_have_the_probabilities_of_the_softmax(by):
    """Over keys, and over the positions of one answer."""
    count, temperature = 20_000, 0.7
    logits = torch.tensor([1.0, 0.5, -0.3, 0.0, -4.0])
    if by == "key":
        sampled = KeyedSampling(torch.arange(count), 2, temperature, 1.0)(
            torch.zeros(count, 6), logits.expand(count, -1)
        )
        found = sampled.argmax(-1)
    else:
        one = KeyedSampling(torch.tensor([9]), 2, temperature, 1.0)
        found = torch.cat([one(torch.zeros(1, 2 + i), logits[None]).argmax(-1) for i in range(4000)])
    shares = torch.bincount(found, minlength=5) / len(found)
    expected = (logits / temperature).softmax(-1)
    assert (shares - expected).abs().max() < 4 * (0.25 / len(found)) ** 0.5


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("tokens", [50, 3000])
def test_the_candidates_are_those_of_transformers(top_p, tokens):
    logits = torch.randn(6, tokens, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[0.01], [1], [2], [3], [5], [9]]
    )
    warper = TopPLogitsWarper(top_p) if top_p < 1 else lambda ids, scores: scores
    expected = warper(None, logits) > -torch.inf
    found, ids = nucleus(logits, top_p)
    kept = torch.zeros_like(expected).scatter_(1, ids, found > -torch.inf)
    # Where the sum reaches top_p within its rounding, either may have a few tokens more.
    assert ((kept != expected).sum(-1) <= (3 if top_p == 0.9999 else 0)).all()
    assert torch.equal(found[found > -torch.inf], logits.gather(1, ids)[found > -torch.inf])


def test_a_sample_depends_on_its_own_row_alone():
    """Not on the other rows, their number or their order, and not on how much padding is in front."""
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(1))
    keys = torch.tensor([3, 14, 15, 92])
    whole = KeyedSampling(keys, 5, 0.8, 0.95)(torch.zeros(4, 9), logits)
    order = [2, 0, 3]
    some = KeyedSampling(keys[order], 7, 0.8, 0.95)(torch.zeros(3, 11), logits[order])
    assert torch.equal(some, whole[order])
    assert (whole > -torch.inf).sum(-1).tolist() == [1, 1, 1, 1]


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(SimPOError, match="no finite numbers"):
        nucleus(torch.tensor([[0.0, torch.nan]]), 0.9)
