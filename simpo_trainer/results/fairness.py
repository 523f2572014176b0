"""Reasons why the figures of runs do not compare, or why a comparison of their methods is not fair."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ..record.conditions import FULL
from ..record.methods import METHODS, PREFERENCE_RATE
from ..record.reader import Run

# Runs of the same length in other batches end on other numbers of pairs; a difference below this share is no reason.
_ALIKE = 0.01


def unfair(runs: Sequence[Run]) -> list[str]:
    """Returns warnings of what one run had and another had not, apart from its method: budget, data, weights, rate."""
    return [*_other_budget(runs), *_other_kind_of_data(runs), *_other_weights(runs), *_low_rates(runs)]


def _other_budget(runs: Sequence[Run]) -> list[str]:
    seen = {run.name: run.conditions.pairs_seen for run in runs if run.conditions.pairs_seen}
    if not seen or max(seen.values()) - min(seen.values()) <= _ALIKE * max(seen.values()):
        return []
    shown = _grouped({name: f"{pairs:,}" for name, pairs in seen.items()})
    return [f"The runs have seen different numbers of pairs, so more training may be all that differs: {shown}."]


def _other_kind_of_data(runs: Sequence[Run]) -> list[str]:
    texts = [run.name for run in runs if run.conditions.on_conversations]
    if not texts or len(texts) == len(runs):
        return []
    return [f"Trained on conversations, not on the pairs of the other runs: {', '.join(texts)}."]


def _other_weights(runs: Sequence[Run]) -> list[str]:
    adapters = {run.name: run.conditions.adapter for run in runs if run.conditions.adapter}
    if len({adapter == FULL for adapter in adapters.values()}) < 2:
        return []
    shown = {name: "all weights" if adapter == FULL else adapter for name, adapter in adapters.items()}
    return [f"Some runs train an adapter and others the whole model: {_grouped(shown)}."]


def _low_rates(runs: Sequence[Run]) -> list[str]:
    """Returns warnings of methods that need a higher learning rate than preference training, and got such a one."""
    found = []
    for run in runs:
        usual = METHODS[run.method].usual.get("learning_rate") if run.method in METHODS else None
        rate = run.conditions.learning_rate
        if usual and rate is not None and rate <= PREFERENCE_RATE:
            title = METHODS[run.method].title
            found.append(
                f"{run.name} had a learning rate of preference training, {rate:g}, at which {title} learns next to "
                f"nothing; it usually takes {usual:g}."
            )
    return found


def unlike(runs: Sequence[Run], *, drift_of_trained: bool) -> list[str]:
    """Returns warnings of other pairs, other starting models and runs that did not finish.

    Args:
        runs: the runs.
        drift_of_trained: whether the drift is over training pairs.
    """
    runs_on_pairs = [run for run in runs if not run.conditions.on_conversations]
    found = [
        *_differing(
            "held-out pairs",
            {run.name: (run.held_out, _rows(run)) for run in runs_on_pairs},
            f", so accuracy{' and margin' if drift_of_trained else ', margin and drift'} do not compare",
        ),
        *_differing(
            "training pairs",
            {run.name: (run.trained_on, "") for run in runs_on_pairs},
            ", so drift does not compare" if drift_of_trained else "",
        ),
    ]
    models = {run.model for run in runs}
    if len(models) > 1:
        found.append(f"The runs started from different models: {_grouped({run.name: run.model for run in runs})}.")
    unfinished = [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]
    if unfinished:
        found.append(f"Not finished: {', '.join(unfinished)}. Their figures are the last ones that were saved.")
    return found


def _rows(run: Run) -> str:
    return "" if run.held_out_rows is None else f"{run.held_out_rows} pairs, "


def _differing(what: str, prints: Mapping[str, tuple[str | None, str]], consequence: str) -> list[str]:
    """Returns warnings about sets that differ between runs, or whose fingerprint is unknown.

    Args:
        what: the name of the sets.
        prints: for each run the fingerprint of its set, and a text to show before it.
        consequence: a text that says which figures do not compare.
    """
    if len(prints) < 2:
        return []
    known = {name: found for name, (found, _) in prints.items() if found}
    unknown = [name for name in prints if name not in known]
    said = []
    if len(set(known.values())) > 1:
        shown = {name: f"{prints[name][1]}hash {found[:8]}" for name, found in known.items()}
        said.append(f"The {what} differ{consequence}: {_grouped(shown)}.")
    if unknown:
        said.append(
            f"It is unknown whether the {what} of {', '.join(unknown)} are the same: no hash of them was recorded."
        )
    return said


def _grouped(values: Mapping[str, str]) -> str:
    """Returns "a, b: first value; c: second value", the value of most runs first."""
    counts = Counter(values.values())
    return "; ".join(
        f"{', '.join(name for name, found in values.items() if found == value)}: {value}"
        for value, _ in counts.most_common()
    )
