"""Rules on the answers that a model writes while it trains, against those before its first step."""

from collections.abc import Mapping

from ..record.findings import SAMPLES, Finding
from .limits import limit
from .view import Advice

Figures = Mapping[str, float]


def sample_findings(step: int, start: Figures, now: Figures, advice: Advice) -> list[Finding]:
    """Returns what the answers of a step show.

    Args:
        step: the optimiser step.
        start: their figures before the first step, see :func:`~simpo_trainer.record.samples.figures_of_samples`.
        now: their figures at this step.
        advice: the settings that a change is computed from.
    """
    found = []
    more = now["repeat_rate"] - start["repeat_rate"]
    if more >= limit("repeat rate"):
        seen = f"the repeat rate rose from {start['repeat_rate']:.2f} to {now['repeat_rate']:.2f}: answers go round."
        found.append(_of("repeats", step, "repeat_rate", seen, advice, more, collapse=more >= limit("repeat collapse")))
    fewer = start["distinct_2"] - now["distinct_2"]
    if now["distinct_2"] < limit("distinct") * start["distinct_2"]:
        seen = (
            f"different pairs of tokens fell from {start['distinct_2']:.2f} to {now['distinct_2']:.2f} of all: answers "
            "grow alike."
        )
        found.append(_of("alike", step, "distinct_2", seen, advice, fewer))
    fewer = start["ended"] - now["ended"]
    if fewer >= limit("ends"):
        seen = f"{now['ended']:.0%} of the answers end by themselves; before the first step {start['ended']:.0%} did."
        found.append(_of("no end", step, "ended", seen, advice, fewer))
    return [*found, *_length(step, start, now, advice)]


def _length(step: int, start: Figures, now: Figures, advice: Advice) -> list[Finding]:
    ratio = (now["tokens"] + 1) / (start["tokens"] + 1)
    factor = max(ratio, 1 / ratio)
    if factor < limit("length"):
        return []
    how = "longer" if ratio > 1 else "shorter"
    seen = f"answers have {now['tokens']:.0f} tokens; before the first step they had {start['tokens']:.0f}."
    cause = f"chosen answers that are {how} than rejected ones, which the model has learned instead of what is better"
    change = "Compare lengths/chosen with lengths/rejected in the log; where they differ much, leave out such pairs."
    return [Finding(f"answers {how}", step, SAMPLES, "samples/tokens", seen, cause, change, factor)]


def _of(
    rule: str, step: int, figure: str, seen: str, advice: Advice, amount: float, *, collapse: bool = False
) -> Finding:
    cause = "a learning rate too high, too many epochs, or answers in the data that were cut or go round themselves"
    change = f"{advice.lower_rate}, and read samples.jsonl."
    return Finding(rule, step, SAMPLES, f"samples/{figure}", seen, cause, change, amount, collapse)
