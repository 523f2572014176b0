"""Each rule on pairs speaks at its limit, is silent below it, and says what it saw and what to change."""

from dataclasses import replace

import pytest

from simpo_trainer.health import pair_rules
from simpo_trainer.health.limits import limit
from simpo_trainer.health.view import Advice, Aim, Figures, View, training_figures

AIM = Aim(0.5, 2.0)
ADVICE = Advice(learning_rate=5e-7, sft_weight=0.0, epochs=1)


def view(*figures, step=None, steps=100, where="eval", pairs=400, aim=AIM, started=True):
    """A view of figures (step, chosen, rejected, accuracy)."""
    seen = [Figures(*each) for each in figures]
    return View(where, seen[-1].step if step is None else step, steps, seen, started, pairs, aim, ADVICE)


def found(seen):
    return {each.rule: each for rule in pair_rules.PAIR_RULES if (each := rule(seen))}


START = (0, -1.2, -1.3, 0.55)
HEALTHY = [
    view(START),
    view(START, (50, -1.25, -1.6, 0.7)),
    view(START, (50, -1.2, -1.5, 0.7), (100, -1.3, -1.9, 0.75)),
    view(START, (100, -0.8, -1.4, 0.7)),
    view(START, (10, -1.2, -1.3, 0.55)),  # early: nothing has happened yet
    view(START, (100, -1.3, -1.9, 0.75), where="train"),
]


@pytest.mark.parametrize("seen", HEALTHY)
def test_a_healthy_run_raises_nothing(seen):
    assert not found(seen)


def test_a_fall_of_chosen_answers_is_told_with_its_size_and_beginning():
    one = found(view(START, (20, -1.1, -1.3, 0.6), (40, -1.75, -1.2, 0.5)))
    assert list(one) == ["chosen falls"]
    seen = one["chosen falls"]
    assert "fell from -1.20 to -1.75 nats per token, since step 20." in seen.seen and "rejected" not in seen.seen
    assert "learning_rate: 2.5e-07 (now 5e-07)" in seen.change and "sft_weight: 0.1" in seen.change
    assert seen.line.startswith("Step 40, held-out pairs: chosen answers fell")
    assert not found(view(START, (40, -1.2 - limit("chosen falls") + 0.01, -1.2, 0.5)))


def test_both_fall_and_a_margin_that_rejected_answers_make():
    assert list(found(view(START, (40, -1.8, -2.0, 0.6)))) == ["both fall"]
    one = found(view(START, (40, -1.5, -2.4, 0.8)))
    assert list(one) == ["margin by rejected"]
    assert "the margin grew by 0.80 only because rejected answers fall faster" in one["margin by rejected"].seen
    # Chosen answers that did not fall are no reason.
    assert not found(view(START, (40, -1.2, -2.4, 0.8)))


def test_a_fall_too_deep_is_a_collapse():
    deep, less = (found(view(START, (40, -1.2 - fall, -9.0, 0.6), aim=None)) for fall in (3.1, 2.9))
    assert [each.collapse for each in (*deep.values(), *less.values())] == [True, False]
    low = found(view(START, (40, -10.5, -14.0, 0.6), aim=None))["chosen low"]
    assert low.collapse and "earlier checkpoint" in low.change


def test_a_model_that_does_not_fit_its_answers_is_told_before_the_first_step():
    one = found(view((0, -11.0, -11.5, 0.5)))
    assert list(one) == ["chosen low"] and not one["chosen low"].collapse
    assert "chat template" in one["chosen low"].cause


@pytest.mark.parametrize(("pairs", "speaks"), [(400, True), (40, False)])
def test_an_accuracy_below_its_start_counts_if_it_is_no_chance(pairs, speaks):
    seen = view((0, -1.2, -1.3, 0.6), (40, -1.2, -1.25, 0.42), pairs=pairs)
    assert ("accuracy falls" in found(seen)) is speaks
    assert "accuracy falls" not in found(replace(seen, where="train"))


def test_an_accuracy_stuck_at_one_half():
    stuck = view((0, -1.2, -1.2, 0.5), (60, -1.3, -1.3, 0.51))
    assert "accuracy stuck" in found(stuck)
    assert "accuracy stuck" not in found(
        replace(stuck, step=40, figures=[*stuck.figures[:1], Figures(40, -1, -1, 0.5)])
    )
    # The margin is on its way: the accuracy follows.
    assert "accuracy stuck" not in found(view((0, -1.2, -1.2, 0.5), (60, -1.2, -1.4, 0.51)))
    # A rate that ruins the model is no rate to raise.
    assert list(found(view((0, -1.2, -1.2, 0.5), (60, -9.0, -9.0, 0.51)))) == ["both fall"]


def test_the_margin_is_judged_by_the_target_and_beta():
    short = view(START, (90, -1.22, -1.34, 0.7))
    assert list(found(short)) == ["margin short"]
    assert "began at +0.100, and the target is 0.5" in found(short)["margin short"].seen
    assert not found(replace(short, steps=1000))  # early
    # A margin that fell has not moved too little.
    assert "margin short" not in found(view(START, (90, -1.22, -1.1, 0.5)))
    assert not found(replace(short, aim=None))
    past = view(START, (60, -1.0, -3.6, 0.99))
    assert list(found(past)) == ["margin past"]
    assert not found(replace(past, aim=Aim(0.5, 1.0)))  # with a smaller beta the loss still has a slope there
    assert found(replace(past, aim=Aim(0.1, 10.0)))
    # A large beta ends the slope soon behind the target: that alone is how such a run ends.
    assert not found(view(START, (60, -1.0, -2.2, 0.99), aim=Aim(0.3, 10.0)))


def test_a_model_that_stands_still():
    still = view(START, (60, -1.201, -1.302, 0.56), aim=None)
    assert list(found(still)) == ["not moving"] and "learning_rate: 5e-06" in found(still)["not moving"].change
    assert not found(replace(still, where="train"))  # other rows at each log
    assert not found(view(START, (60, -1.21, -1.302, 0.56), aim=None))


def test_noise_of_training_pairs_is_no_fall():
    names = {"chosen": "c", "rejected": "r", "accuracy": "a"}

    def of_training(fall, noise, pairs=8, logs=40):
        log = [
            {"step": i, "c": -1.2 - fall + noise * (-1) ** i, "r": -2.5, "a": 0.7, "num_pairs_seen": pairs * i}
            for i in range(1, logs + 1)
        ]
        figures = [Figures(*START), *training_figures(log, names, 64)]
        return list(found(View("train", logs, 100, figures, True, 64, AIM, ADVICE)))

    assert of_training(0.2, 0.01) == of_training(0.6, 0.01) == ["margin by rejected"]
    assert not of_training(0.2, 0.2) and not of_training(0.6, 0.5)
    assert not of_training(0.6, 0.0, logs=2)  # nothing is known of the noise
    # The untrained model was measured on 64 pairs, so that many pairs in a log help only so far.
    assert not of_training(0.22, 0.01, pairs=640) and of_training(0.2, 0.002, pairs=640) == ["margin by rejected"]
    assert of_training(3.1, 0.8, logs=2) == ["both fall"]  # beyond all noise


def test_noise_of_training_pairs_is_no_margin_that_stands():
    names = {"chosen": "c", "rejected": "r", "accuracy": "a"}

    def of_training(noise, logs=90):
        log = [
            {"step": i, "c": -1.2, "r": -1.3 + noise * (-1) ** i, "a": 0.7, "num_pairs_seen": 8 * i}
            for i in range(1, logs + 1)
        ]
        figures = [Figures(*START), *training_figures(log, names, 64)]
        return list(found(View("train", logs, 100, figures, True, 64, AIM, ADVICE)))

    assert of_training(0.01) == ["margin short"] and not of_training(0.2)


def test_an_accuracy_that_fell_to_one_half_is_not_stuck_there():
    assert list(found(view((0, -2.4, -2.8, 1.0), (50, -2.4, -2.4, 0.5), pairs=52))) == ["accuracy falls"]
    assert list(found(view((0, -2.4, -2.4, 0.5), (50, -2.4, -2.4 + 0.01, 0.5), pairs=52))) == ["accuracy stuck"]


def test_without_a_start_only_what_needs_none_is_judged():
    assert not found(view((20, -1, -2, 0.5), (60, -3, -3.1, 0.3), started=False, aim=None))
    assert list(found(view((60, -11, -12, 0.7), started=False))) == ["chosen low"]


def test_training_figures_are_means_over_enough_pairs():
    names = {"chosen": "c", "rejected": "r", "accuracy": "a"}
    log = [{"step": i, "c": -i, "r": -2 * i, "a": 0.5, "num_pairs_seen": 16 * i} for i in range(1, 6)]
    figures = training_figures(log, names, 64)
    assert [each.step for each in figures] == [1, 2, 3, 4, 5]
    assert figures[-1].chosen == -3.5 and figures[-1].margin == 3.5 and figures[0].chosen == -1
    assert training_figures(log, names, 64, since=3) == figures[3:]
