"""Compare the figures of several runs, with notes that explain them and warnings where they do not compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..record.reader import PER_ANSWER, PER_TOKEN, Point, Run, is_against_reference
from .fairness import unfair, unlike

# The condition for winning a pair, in short and in full, for each unit of log-probabilities.
_WON_BY = {
    PER_TOKEN: ("per token", "higher average log-prob per token"),
    PER_ANSWER: ("per answer", "higher log-prob, summed over its tokens"),
}
# The same for a method with a reference model.
_AGAINST_REFERENCE = ("vs. reference", "log-prob raised more over the reference model's")


@dataclass(frozen=True)
class Drift:
    """The change of the chosen answers' log-probability since its first measurement, by optimiser step, in a unit."""

    unit: str
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
        figures=tuple(_figures(*each) for each in zip(runs, drifts, _training_data(runs), strict=True)),
        notes=tuple(_notes(runs, measure, drifts)),
        warnings=(*unlike(runs, drift_of_trained=measure == _OF_TRAINED), *unfair(runs)),
    )


def won_by(run: Run) -> tuple[str, str] | None:
    """Returns the condition for winning a pair in a run's own accuracy, in short and in full; None without one."""
    if run.best is None:
        return None
    return _AGAINST_REFERENCE if is_against_reference(run.method) else _WON_BY[run.unit]


# ---- The drift ----


Course = tuple[str, tuple[Point, ...]]


def _held_out(run: Run) -> Course:
    """Returns the measurements up to the saved model; per token, unless that was done less than twice."""
    if run.scored:
        points = (*(point for point in run.per_token if point.step < run.scored.step), run.scored)
        if len(points) > 1 or run.unit == PER_TOKEN:
            return PER_TOKEN, points
    final = run.final if run.final not in run.evaluations else None
    return run.unit, (*run.evaluations, final) if final else run.evaluations


def _held_out_from_start(run: Run) -> Course:
    unit, points = _held_out(run)
    return unit, points if points and points[0].step == 0 else ()


_OF_TRAINED = "training pairs, the same up to 64 rows under the untrained and the trained model"
# The most informative measure first: if the first evaluation comes after hundreds of steps, it misses most of the
# drift. Each measure uses the same pairs at all its points: different pairs, often of other lengths, differ by more
# than any drift.
_MEASURES: dict[str, Callable[[Run], Course]] = {
    "held-out pairs, from the untrained model to the last evaluation": _held_out_from_start,
    _OF_TRAINED: lambda run: (run.unit, run.same_rows),
    "held-out pairs, from the first evaluation to the last": _held_out,
}


def _drifts(runs: Sequence[Run]) -> tuple[str | None, tuple[Drift | None, ...]]:
    """Returns the measure that most runs have (the first of equals), and the drift of each run by it."""
    found = {name: tuple(_drift(*course(run)) for run in runs) for name, course in _MEASURES.items()}
    best = max(found, key=lambda name: sum(drift is not None for drift in found[name]))
    return (best, found[best]) if any(found[best]) else (None, found[best])


def _drift(unit: str, points: Sequence[Point]) -> Drift | None:
    known = [(point.step, point.chosen) for point in points if point.chosen is not None]
    if len(known) < 2:
        return None
    first = known[0][1]
    return Drift(unit, tuple(step for step, _ in known), tuple(chosen - first for _, chosen in known))


# ---- The figures ----


def _figures(run: Run, drift: Drift | None, data: str | None) -> dict[str, Any]:
    """Returns the figures of a run; each name has the same unit and meaning in all runs.

    Args:
        run: the run.
        drift: its drift.
        data: a word for its training pairs beside those of the other runs.
    """
    memory: Mapping[str, Any] = run.memory or {}
    own = won_by(run)
    own_is_per_token = own == _WON_BY[PER_TOKEN]
    change = drift.changes[-1] if drift else None
    conditions = asdict(run.conditions)
    del conditions["on_conversations"]
    return {
        "status": run.status,
        "method": run.method,
        "loss": run.loss,
        **conditions,
        "training_data": data,
        **_per_token("", run.scored),
        **_per_token("untrained_", run.untrained),
        **_best("", run.best if own_is_per_token else None),
        "chosen_drift_nats_per_token": change if drift and drift.unit == PER_TOKEN else None,
        "own_pair_won_by": own[0] if own and not own_is_per_token else None,
        "own_accuracy": run.final.accuracy if run.final and not own_is_per_token else None,
        **_best("own_", None if own_is_per_token else run.best),
        "margin_nats_per_answer": run.final.margin if run.final and run.unit == PER_ANSWER else None,
        "chosen_drift_nats_per_answer": change if drift and drift.unit == PER_ANSWER else None,
        "chosen_tokens": run.final.chosen_tokens if run.final else None,
        "rejected_tokens": run.final.rejected_tokens if run.final else None,
        "training_seconds": run.seconds,
        "peak_memory_accelerator_bytes": memory.get("bytes") if memory.get("of") == "accelerator" else None,
        "peak_memory_process_bytes": memory.get("bytes") if memory.get("of") == "process" else None,
    }


def _per_token(prefix: str, point: Point | None) -> dict[str, float | None]:
    return {
        f"{prefix}accuracy": point.accuracy if point else None,
        f"{prefix}margin_nats_per_token": point.margin if point else None,
        f"{prefix}chosen_nats_per_token": point.chosen if point else None,
    }


def _best(prefix: str, best: Point | None) -> dict[str, float | None]:
    found = {"best_accuracy": best.accuracy if best else None, "best_accuracy_step": best.step if best else None}
    return {prefix + name: value for name, value in found.items()}


def _training_data(runs: Sequence[Run]) -> list[str | None]:
    """Returns for each run "same", the hash of its training pairs or "unknown"; None for a single run."""
    if len(runs) < 2:
        return [None]
    if len({run.trained_on for run in runs}) == 1 and runs[0].trained_on:
        return ["same"] * len(runs)
    return [f"hash {run.trained_on[:8]}" if run.trained_on else "unknown" for run in runs]


# ---- Notes ----


def _notes(runs: Sequence[Run], measure: str | None, drifts: Sequence[Drift | None]) -> list[str]:
    notes = []
    if any(run.scored for run in runs):
        notes.append(
            f"Held-out accuracy: the share of held-out pairs whose chosen answer has the {_WON_BY[PER_TOKEN][1]}."
        )
    meanings: dict[str, list[str]] = {}
    for run in runs:
        if (won := won_by(run)) and won != _WON_BY[PER_TOKEN]:
            meanings.setdefault(won[1], []).append(run.name)
    told = [f"the {meaning} ({', '.join(names)})" for meaning, names in meanings.items()]
    if told:
        notes.append(f"Own accuracy: as the method measures it, by {'; '.join(told)}.")
    if texts := [run.name for run in runs if run.conditions.on_conversations]:
        notes.append(f"{', '.join(texts)}: trained on conversations, which hold no pairs to score; hence the dashes.")
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
