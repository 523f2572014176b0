"""Rules on the training log: they speak at their limits, and are silent on a run that goes as it should."""

from dataclasses import replace

import pytest

from simpo_trainer.health.setting_rules import Planned, planned_findings
from simpo_trainer.health.training_rules import TRAINING_RULES, Logged
from simpo_trainer.health.view import Advice

ADVICE = Advice(learning_rate=1e-6, sft_weight=0.0, epochs=1)


def logged(losses, norms=None, start=1.0, warmup=2, **more):
    """A log of a loss at each step."""
    norms = norms or [1.0] * len(losses)
    entries = [
        {"step": i + 1, "loss": loss, "preference_loss": loss, "grad_norm": norm, **more}
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    return Logged(entries, len(losses), warmup, start, "preference_loss", ADVICE)


def found(log):
    return {each.rule: each for rule in TRAINING_RULES if (each := rule(log))}


FALLING = [1.0 - 0.02 * i for i in range(20)]


def test_a_loss_that_falls_raises_nothing():
    assert not found(logged(FALLING))
    assert not found(logged([0.5] * 20))  # it has fallen to where it stands
    assert not found(logged([1.0] * 8))  # too few logs


def test_a_loss_that_stands_still():
    assert list(found(logged([1.0 + 0.01 * (i % 2) for i in range(20)]))) == ["loss still"]
    assert not found(logged([1.0 - 0.03 * (i > 10) for i in range(20)]))


def test_noise_in_which_a_fall_can_hide_is_no_standstill():
    noisy = [1.0 + 0.5 * (-1) ** i for i in range(20)]
    assert not found(logged(noisy))
    assert list(found(logged([1.0 + 0.02 * (-1) ** i for i in range(120)]))) == ["loss still"]  # many logs outweigh it


def test_the_warm_up_counts_for_nothing():
    """The loss falls there, and then stands."""
    assert list(found(logged([2.0] * 10 + [1.0] * 14, start=None, warmup=10))) == ["loss still"]


def test_a_loss_well_above_its_start():
    one = found(logged([1.0, 1.2, 1.4, 1.6, 1.7], start=1.0))
    assert list(one) == ["loss rises"] and one["loss rises"].collapse
    assert "learning_rate: 1e-07 (now 1e-06)" in one["loss rises"].change
    assert not found(logged([1.0, 1.2, 1.2, 1.2, 2.0], start=1.0))  # one log is no trend
    assert not found(logged([1.0, 1.2, 1.4, 1.6, 1.7], start=None))


def test_a_spike_of_the_gradient_stands_out_from_the_median():
    norms = [1.0, 1.2, 0.9] * 6 + [1.0, 30.0]
    assert list(found(logged(FALLING, norms))) == ["gradient spike"]
    assert not found(logged(FALLING, norms[:-1] + [8.0]))
    assert not found(logged(FALLING[:5], [1, 1, 1, 1, 30.0]))
    assert not found(logged(FALLING, [40.0, *norms[1:]]))  # the first steps had as much


@pytest.mark.parametrize("name", ["logps/chosen", "logps/rejected"])
def test_a_log_probability_above_zero_is_an_error(name):
    one = found(logged(FALLING, **{name: 0.2}))
    assert list(one) == ["above zero"] and name in one["above zero"].seen
    assert not found(logged(FALLING, **{name: -0.2}))


def test_settings_are_told_before_the_first_step():
    usual = Planned(beta=2.0, batch=128, learning_rate=5e-7, weights=8_000_000_000, adapts=False)
    assert not planned_findings(usual)
    bad = Planned(beta=0.1, batch=1, learning_rate=2e-5, weights=8_000_000_000, adapts=False)
    assert [each.rule for each in planned_findings(bad)] == ["tiny beta", "tiny batch", "high rate"]
    assert not planned_findings(Planned(None, 8, 1e-3, 1_000_000, False))  # another loss, a toy
    repeated = replace(usual, rows=200, repeated=20)
    [one] = planned_findings(repeated)
    assert one.rule == "repeated pairs" and "20 of 200 training rows (10%) repeat an earlier one." in one.seen
    assert not planned_findings(replace(repeated, repeated=19))
    assert not planned_findings(replace(repeated, rows=None, repeated=None))  # a stream
    leaking = replace(usual, held_out={"eval_a": (100, 5), "eval_b": (100, 4), "eval_c": (0, 0)})
    [one] = planned_findings(leaking)
    assert one.rule == "not held out" and one.seen.startswith("5 of 100 rows of eval_a are training rows too:")
    adapter = Planned(2.0, 128, 2e-5, 8_000_000_000, adapts=True)
    assert not planned_findings(adapter)
