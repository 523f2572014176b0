"""Sampling with noise by prompt, seed and position: its distribution, and that nothing else changes it."""

import pytest
import torch
from transformers import TopPLogitsWarper

from simpo_trainer import SimPOError
from simpo_trainer.answers.sampling import KeyedSampling, gumbel_noise, nucleus

_MASK = (1 << 64) - 1


def splitmix(number: int) -> int:
    """The finaliser of SplitMix64, in Python's whole numbers."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def test_the_noise_is_that_of_the_hash():
    """In whole numbers without a sign."""
    golden = 0x9E3779B97F4A7C15
    keys, tokens = torch.tensor([5, -(2**63)]), torch.tensor([[0, 7, 300_000], [1, 2, 3]])
    found = gumbel_noise(keys, 11, tokens)
    for row, key in enumerate(keys.tolist()):
        for column, token in enumerate(tokens[row].tolist()):
            start = splitmix((key + (12 * (golden - 2**64)) % (1 << 63)) & _MASK)
            uniform = ((splitmix((start + (token + 1) * golden) & _MASK) >> 41) + 0.5) / 2**23
            expected = -torch.log(-torch.log(torch.tensor(uniform, dtype=torch.float64)))
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_noise_has_the_moments_of_gumbel_s_distribution():
    """Its mean is Euler's constant, its variance pi^2 / 6; neighbours are not correlated."""
    noise = gumbel_noise(torch.arange(400), 3, torch.arange(500).expand(400, -1)).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.03)
    near = torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()])
    assert abs(torch.corrcoef(near)[0, 1].item()) < 0.01
    near = torch.stack([noise[:-1].flatten(), noise[1:].flatten()])
    assert abs(torch.corrcoef(near)[0, 1].item()) < 0.01


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
