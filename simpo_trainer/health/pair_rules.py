"""Rules on the log-probabilities of pairs, held out or trained on, against those of the untrained model."""

import math
from collections.abc import Callable, Sequence

from ..record.findings import Finding
from ..record.metric_table import ACCURACY, CHOSEN, MARGINS
from .limits import limit
from .view import Figures, View

Rule = Callable[[View], Finding | None]


def chosen_low(view: View) -> Finding | None:
    """Chosen answers so unlikely that the model does not learn from them."""
    chosen = view.now.chosen
    if chosen >= limit("chosen low"):
        return None
    begun = view.start is None or view.start.chosen < limit("chosen low")
    cause = "a model, tokenizer or chat template that does not fit the answers" if begun else _RATE
    change = (
        "Look at the two pairs at the start of the log: are they as the model was trained on?"
        if begun
        else f"{view.advice.far_lower_rate}, and go on from an earlier checkpoint."
    )
    seen = (
        f"chosen answers have an average log-probability of {chosen:.2f} nats per token; below -10 nothing is learned."
    )
    return Finding("chosen low", view.step, view.where, CHOSEN, seen, cause, change, -chosen, collapse=not begun)


def chosen_falls(view: View) -> Finding | None:
    """Chosen answers that became less likely, and what the rejected ones and the margin did meanwhile."""
    start, now = view.start, view.now
    if start is None:
        return None
    fall, grown = start.chosen - now.chosen, now.margin - start.margin
    collapse = fall >= limit("collapse")
    sure = fall if collapse else fall - limit("noise") * now.error
    by_rejected = grown >= limit("margin grown") and sure >= limit("margin by rejected")
    if sure < limit("chosen falls") and not by_rejected:
        return None
    both = now.rejected < start.rejected
    rule = "margin by rejected" if by_rejected and both else "both fall" if both else "chosen falls"
    since = _highest(view.figures)
    seen = f"chosen answers fell from {start.chosen:.2f} to {now.chosen:.2f} nats per token, since step {since}"
    if both:
        seen += f", and rejected ones from {start.rejected:.2f} to {now.rejected:.2f}"
    if rule == "margin by rejected":
        seen += f": the margin grew by {grown:.2f} only because rejected answers fall faster"
    change = f"{view.advice.far_lower_rate}." if collapse else view.advice.keep_near
    cause = _RATE if view.advice.epochs <= 1 else f"{_RATE}, or too many epochs ({view.advice.epochs:g})"
    return Finding(rule, view.step, view.where, CHOSEN, f"{seen}.", cause, change, fall, collapse)


def accuracy_falls(view: View) -> Finding | None:
    """Held-out accuracy below its start by more than chance."""
    start, now = view.start, view.now
    if start is None or not view.held_out:
        return None
    error = _standard_error((start.accuracy + now.accuracy) / 2, view.pairs)
    fall = (start.accuracy - now.accuracy) / error
    if fall < limit("accuracy falls"):
        return None
    seen = (
        f"the accuracy fell from {start.accuracy:.1%} to {now.accuracy:.1%} of {view.pairs} pairs, {fall:.1f} standard "
        "errors."
    )
    change = "Look at some pairs: is the chosen answer the better one in both sets? If it is, halve learning_rate"
    change += f" (now {view.advice.learning_rate:g})."
    cause = "chosen and rejected swapped in one of the sets, or a learning rate too high"
    return Finding("accuracy falls", view.step, view.where, ACCURACY, seen, cause, change, fall)


def accuracy_stuck(view: View) -> Finding | None:
    """Accuracy that is still one half when half of the training is done, of a model that has not moved far."""
    start, now = view.start, view.now
    if start is None or view.done < limit("half") or not view.held_out:
        return None
    if start.chosen - now.chosen >= limit("chosen falls") or accuracy_falls(view):
        return None  # told already, and the rate is not too low
    chance = limit("accuracy stuck") * _standard_error(0.5, view.pairs)
    grown = (now.margin - start.margin) / max(view.aim.margin, 0.1) if view.aim else now.accuracy - start.accuracy
    if abs(now.accuracy - 0.5) > chance or grown >= limit("margin short"):
        return None
    seen = f"the accuracy is {now.accuracy:.1%} of {view.pairs} pairs at {view.done:.0%} of the steps, as by chance."
    change = "Look at some pairs: can you tell the chosen answer? If you can, raise learning_rate or num_train_epochs"
    change += f" (now {view.advice.learning_rate:g} and {view.advice.epochs:g})."
    cause = "labels that are chance, too few steps, or a learning rate too low"
    return Finding("accuracy stuck", view.step, view.where, ACCURACY, seen, cause, change)


def margin_short(view: View) -> Finding | None:
    """A margin that late in the run has hardly left its start on the way to the target."""
    start, now, aim = view.start, view.now, view.aim
    if start is None or aim is None or view.done < limit("late") or start.margin >= aim.margin:
        return None
    moved = abs(now.margin - start.margin) + 2 * now.margin_error  # what may have been is no standstill
    if moved >= limit("margin short") * (aim.margin - start.margin):
        return None
    seen = (
        f"the margin is {now.margin:+.3f} nats per token at {view.done:.0%} of the steps; it began at "
        f"{start.margin:+.3f}, and the target is {aim.margin:g}."
    )
    change = f"Raise learning_rate (now {view.advice.learning_rate:g}) or num_train_epochs, or lower global_batch_size."
    cause = "too few steps, a learning rate too low, or pairs that do not differ in what the model can learn"
    return Finding("margin short", view.step, view.where, MARGINS, seen, cause, change)


def margin_past(view: View) -> Finding | None:
    """A margin so far past the target that the loss has no slope left."""
    aim, now = view.aim, view.now
    if aim is None or view.done < limit("half"):
        return None
    past = now.margin - aim.margin
    if past < max(limit("margin past") / aim.beta, limit("margin far past")):
        return None
    seen = (
        f"the margin is {now.margin:+.2f} nats per token, {past:.2f} past the target of "
        f"{aim.margin:g}: most pairs teach nothing any more."
    )
    cause = "pairs that were seen too often or are too easy, or a learning rate too high"
    fewer = "Set num_train_epochs: 1, or lower" if view.advice.epochs > 1 else "Lower"
    change = f"{fewer} learning_rate (now {view.advice.learning_rate:g}), and count how many pairs are repeated."
    return Finding("margin past", view.step, view.where, MARGINS, seen, cause, change, past)


def not_moving(view: View) -> Finding | None:
    """A model that gives all pairs the log-probabilities of its start when half of the training is done."""
    start, now = view.start, view.now
    if start is None or view.done < limit("half") or not view.held_out:
        return None
    moved = max(abs(now.chosen - start.chosen), abs(now.rejected - start.rejected))
    if moved >= limit("not moving"):
        return None
    seen = (
        f"log-probabilities are within {max(moved, 0.0001):.4f} nats per token of the start at {view.done:.0%} of the "
        "steps: the model does not move."
    )
    rate = view.advice.learning_rate
    change = f"Set learning_rate: {10 * rate:.3g} (now {rate:g}), or make more steps: a smaller global_batch_size."
    return Finding(
        "not moving", view.step, view.where, CHOSEN, seen, "a learning rate too low, or too few steps", change
    )


PAIR_RULES: tuple[Rule, ...] = (
    *(chosen_low, chosen_falls, accuracy_falls, accuracy_stuck, margin_short, margin_past, not_moving),
)

_RATE = "a learning rate too high"


def _standard_error(share: float, pairs: int) -> float:
    return math.sqrt(max(share * (1 - share), 0.25 / max(pairs, 1)) / max(pairs, 1))


def _highest(figures: Sequence[Figures]) -> int:
    """Returns the step at which chosen answers were likeliest: the fall goes on since then."""
    return max(figures, key=lambda each: each.chosen).step
