"""Compare the figures of several runs, with notes that explain them and warnings where they do not compare."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..record.reader import PER_ANSWER, PER_TOKEN, Point, Run, is_against_reference

# The condition for winning a pair, in short and in full, for each unit of log-probabilities.
_WON_BY = {
    PER_TOKEN: ("per token", "higher average log-prob per token"),
    PER_ANSWER: ("per answer", "higher log-prob, summed over its tokens"),
}
# The same for a method with a reference model.
_AGAINST_REFERENCE = ("vs. reference", "log-prob raised more over the reference model's")


@dataclass(frozen=True)
class Drift:
    """The change of the chosen answers' log-probability since its first measurement, by optimiser step."""

    steps: tuple[int, ...]
    changes: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs with the figures of each, and the notes that explain them.

    Args:
        runs: the runs, in the order given.
        drifts: the drift of each run, by one measure for all runs; None where a run has none.
        drift_measure: the name of that measure.
        figures: the figures of each run, by name; None where a run has none.
        notes: sentences that explain the figures.
        warnings: reasons why figures do not compare.
    """

    runs: tuple[Run, ...]
    drifts: tuple[Drift | None, ...]
    drift_measure: str | None
    figures: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Returns the figures of the runs side by side."""
    measure, drifts = _drifts(runs)
    return Comparison(
        runs=tuple(runs),
        drifts=drifts,
        drift_measure=measure,
        figures=tuple(_figures(run, drift) for run, drift in zip(runs, drifts, strict=True)),
        notes=tuple(_notes(runs, measure, drifts)),
        warnings=tuple(_warnings(runs, measure)),
    )


def won_by(run: Run) -> tuple[str, str] | None:
    """Returns the condition for winning a pair in a run's accuracy, in short and in full; None without accuracy."""
    if run.best is None:
        return None
    return _AGAINST_REFERENCE if is_against_reference(run.method) else _WON_BY[run.unit]


# ---- The drift ----


def _held_out(run: Run) -> tuple[Point, ...]:
    final = run.final if run.final not in run.evaluations else None
    return (*run.evaluations, final) if final else run.evaluations


def _held_out_from_start(run: Run) -> tuple[Point, ...]:
    points = _held_out(run)
    return points if points and points[0].step == 0 else ()


_OF_TRAINED = "training pairs, the same up to 64 rows under the untrained and the trained model"
# The most informative measure first: if the first evaluation comes after hundreds of steps, it misses most of the
# drift. Each measure uses the same pairs at all its points: different pairs, often of other lengths, differ by more
# than any drift.
_MEASURES: dict[str, Callable[[Run], tuple[Point, ...]]] = {
    "held-out pairs, from the untrained model to the last evaluation": _held_out_from_start,
    _OF_TRAINED: lambda run: run.same_rows,
    "held-out pairs, from the first evaluation to the last": _held_out,
}


def _drifts(runs: Sequence[Run]) -> tuple[str | None, tuple[Drift | None, ...]]:
    """Returns the measure that most runs have (the first of equals), and the drift of each run by it."""
    found = {name: tuple(_drift(points(run)) for run in runs) for name, points in _MEASURES.items()}
    best = max(found, key=lambda name: sum(drift is not None for drift in found[name]))
    return (best, found[best]) if any(found[best]) else (None, found[best])


def _drift(points: Sequence[Point]) -> Drift | None:
    known = [(point.step, point.chosen) for point in points if point.chosen is not None]
    if len(known) < 2:
        return None
    first = known[0][1]
    return Drift(tuple(step for step, _ in known), tuple(chosen - first for _, chosen in known))


# ---- The figures ----


def _figures(run: Run, drift: Drift | None) -> dict[str, Any]:
    """Returns the figures of a run; each name has the same unit and meaning in all runs."""
    final, best, won = run.final, run.best, won_by(run)
    memory: Mapping[str, Any] = run.memory or {}
    margin, change = final.margin if final else None, drift.changes[-1] if drift else None
    return {
        "status": run.status,
        "method": run.method,
        "loss": run.loss,
        "pair_won_by": won[0] if won else None,
        "accuracy": final.accuracy if final else None,
        "best_accuracy": best.accuracy if best else None,
        "best_accuracy_step": best.step if best else None,
        "margin_nats_per_token": margin if run.unit == PER_TOKEN else None,
        "margin_nats_per_answer": margin if run.unit == PER_ANSWER else None,
        "chosen_drift_nats_per_token": change if run.unit == PER_TOKEN else None,
        "chosen_drift_nats_per_answer": change if run.unit == PER_ANSWER else None,
        "chosen_tokens": final.chosen_tokens if final else None,
        "rejected_tokens": final.rejected_tokens if final else None,
        "training_seconds": run.seconds,
        "peak_memory_accelerator_bytes": memory.get("bytes") if memory.get("of") == "accelerator" else None,
        "peak_memory_process_bytes": memory.get("bytes") if memory.get("of") == "process" else None,
    }


# ---- Notes and warnings ----


def _notes(runs: Sequence[Run], measure: str | None, drifts: Sequence[Drift | None]) -> list[str]:
    meanings: dict[str, list[str]] = {}
    for run in runs:
        if won := won_by(run):
            meanings.setdefault(won[1], []).append(run.name)
    told = [
        f"the {meaning}" + (f" ({', '.join(names)})" if len(meanings) > 1 else "")
        for meaning, names in meanings.items()
    ]
    alike = "" if len(meanings) < 2 else "measured in different ways, "
    notes = [f"Accuracy: {alike}the share of held-out pairs whose chosen answer has {'; '.join(told)}."] if told else []
    if measure:
        notes.append(f"Drift of the chosen answers' log-prob: {measure}{_first_steps(runs, drifts)}.")
    if any(run.final and run.final.chosen_tokens is not None for run in runs):
        notes.append("Tokens: mean lengths of the held-out answers in the data, not of answers that models generate.")
    if any((run.memory or {}).get("of") == "process" for run in runs):
        notes.append("Memory of a process: all its resident memory, libraries and data included.")
    resumed = [f"{run.name} from step {run.resumed_from}" for run in runs if run.resumed_from]
    if resumed:
        notes.append(f"Training time and memory are of the last part of resumed runs: {', '.join(resumed)}.")
    return notes


def _first_steps(runs: Sequence[Run], drifts: Sequence[Drift | None]) -> str:
    """Returns the step of the first measurement of each run as text; "" if it is step 0 for all."""
    first = {run.name: drift.steps[0] for run, drift in zip(runs, drifts, strict=True) if drift}
    if len(set(first.values())) == 1:
        [step] = set(first.values())
        return f" (from step {step})" if step else ""
    return " (" + ", ".join(f"{name} from step {step}" for name, step in first.items()) + ")"


def _warnings(runs: Sequence[Run], measure: str | None) -> list[str]:
    drift_of_trained = measure == _OF_TRAINED
    found = [
        *_differing(
            "held-out pairs",
            {run.name: (run.held_out, _rows(run)) for run in runs},
            f", so accuracy{' and margin' if drift_of_trained else ', margin and drift'} do not compare",
        ),
        *_differing(
            "training pairs",
            {run.name: (run.trained_on, "") for run in runs},
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
