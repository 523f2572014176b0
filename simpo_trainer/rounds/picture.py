"""The picture of the rounds: held-out score, accuracy on held-out pairs, and length of answers."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..answers.journal import no_room
from ..results.style import BLUE, GREEN, GUIDE, ORANGE, finish_panel, picture
from .facts import RoundFacts

_LINE = {"marker": "o", "markersize": 5, "clip_on": False}


def rounds_picture(rounds: Sequence[RoundFacts], best: RoundFacts, path: Path) -> None:
    """Draw the rounds into a PNG file, which is there whole or not at all.

    Raises:
        SimPOError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.new")
    with picture(1, 3) as (figure, grid):
        score, accuracy, length = grid.flatten()
        score.set(title="Held-out score", ylabel="mean score of greedy answers")
        _draw_scores(score, rounds, best)
        accuracy.set(title="Held-out pairs", ylabel="share of pairs won")
        _draw(accuracy, rounds, lambda facts: facts.pair_accuracy, GREEN)
        accuracy.axhline(0.5, **GUIDE, label="chance")
        accuracy.set_ylim(-0.02, 1.02)
        length.set(title="Length of answers", ylabel="tokens")
        _draw(length, rounds, lambda facts: facts.answer_tokens, ORANGE)
        length.set_ylim(bottom=0)
        for axis in (score, accuracy, length):
            axis.set_xlabel("round (0: the start model)")
            finish_panel(axis, steps=rounds[-1].round)
        try:
            figure.savefig(new, format="png")
            os.replace(new, path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise no_room(path, error) from error


def _draw(axis: Any, rounds: Sequence[RoundFacts], fact: Callable[[RoundFacts], float | None], colour: str) -> None:
    points = [(facts.round, value) for facts in rounds if (value := fact(facts)) is not None]
    axis.plot([number for number, _ in points], [value for _, value in points], color=colour, **_LINE)


def _draw_scores(axis: Any, rounds: Sequence[RoundFacts], best: RoundFacts) -> None:
    """Draw the scores, each with the interval of its change since the start."""
    _draw(axis, rounds, lambda facts: facts.held_out_score, BLUE)
    label: str | None = "95 % of the change"
    for facts in rounds:
        if facts.change is None or facts.change_low is None or facts.change_high is None:
            continue
        ends = [[facts.change - facts.change_low], [facts.change_high - facts.change]]
        axis.errorbar(
            [facts.round], [facts.held_out_score], yerr=ends, color=BLUE, capsize=3, linewidth=1.2, label=label
        )
        label = None  # one entry explains them
    star = {"marker": "*", "markersize": 13, "color": ORANGE, "linestyle": "none", "clip_on": False, "zorder": 3}
    axis.plot([best.round], [best.held_out_score], label="best", **star)
