"""Read a run from its output folder: manifest, log and results. Only JSON is read, nothing is unpickled."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SimPOError
from .conditions import Conditions
from .folders import MANIFEST, STATE, checkpoints
from .methods import METHODS
from .metric_table import ACCURACY, CHOSEN, CHOSEN_LENGTH, MARGINS, REJECTED, REJECTED_LENGTH

PER_TOKEN, PER_ANSWER = "nats per token", "nats per answer"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """The figures of one optimiser step; None for a figure that was not measured.

    `accuracy` is the share of pairs won; `margin` is the log-probability of chosen answers minus that of rejected ones
    and `chosen` that of chosen answers, in the unit of the run; `chosen_tokens` and `rejected_tokens` are mean lengths.
    """

    step: int
    accuracy: float | None
    margin: float | None
    chosen: float | None
    chosen_tokens: float | None
    rejected_tokens: float | None

    @classmethod
    def of(cls, entry: Json, prefix: str, step: int) -> "Point":
        """Returns the figures of a log entry whose names begin with `prefix`."""
        get = {name: _number(entry.get(prefix + name)) for name in _NAMES}
        chosen, rejected, margin = get[CHOSEN], get[REJECTED], get[MARGINS]
        if margin is None and chosen is not None and rejected is not None:
            margin = chosen - rejected  # trl logs no margin; the difference of two means is the mean of differences
        return cls(step, get[ACCURACY], margin, chosen, get[CHOSEN_LENGTH], get[REJECTED_LENGTH])

    @classmethod
    def scored(cls, figures: Json, step: int) -> "Point":
        """Returns the figures that stand under `held_out` in a manifest, averages per token."""
        accuracy, margin, chosen = (_number(figures.get(name)) for name in ("accuracy", "margin", "chosen"))
        return cls(step, accuracy, margin, chosen, None, None)

    @property
    def is_empty(self) -> bool:
        """Returns whether neither accuracy nor the log-probability of chosen answers was measured."""
        return self.accuracy is None and self.chosen is None


_NAMES = (ACCURACY, MARGINS, CHOSEN, REJECTED, CHOSEN_LENGTH, REJECTED_LENGTH)


@dataclass(frozen=True)
class Run:
    """One run and one of its held-out sets.

    Args:
        name: its name in tables and pictures.
        status: "finished", or the state and step that it reached.
        method: "simpo", "dpo", ...; loss: the name of its loss.
        conditions: its data, budget and settings.
        unit: the unit of log-probabilities in its log, `PER_TOKEN` or `PER_ANSWER`.
        evaluations: evaluations on the held-out set during training and at its end, by the method's own measure.
        final: the held-out evaluation of the model that was saved.
        per_token: the same pairs scored per token, by step: before training, whenever that was done, and at the end.
        scored: of those, the figures of the model that was saved.
        same_rows: the untrained and the trained model on the same training rows; empty points if not measured.
        seconds: duration of the training with its evaluations.
        resumed_from: the step at which the training of `seconds` began.
        memory: `bytes` at the peak, and `of` what.
        held_out, trained_on: fingerprints of the pairs of the sets; None if not known.
        held_out_rows: number of pairs in the held-out set.
        model: the name of the model that training started from.
    """

    name: str
    status: str
    method: str
    loss: str
    conditions: Conditions
    unit: str
    evaluations: tuple[Point, ...]
    final: Point | None
    per_token: tuple[Point, ...]
    scored: Point | None
    same_rows: tuple[Point, ...]
    seconds: float | None
    resumed_from: int
    memory: Json | None
    held_out: str | None
    held_out_rows: int | None
    trained_on: str | None
    model: str

    @property
    def untrained(self) -> Point | None:
        """Returns the figures per token of the untrained model."""
        return self.per_token[0] if self.per_token and self.per_token[0].step == 0 else None

    @property
    def best(self) -> Point | None:
        """Returns the held-out evaluation with the highest accuracy, the earliest of equals, by its own measure."""
        known = [point for point in self.evaluations if point.accuracy is not None and not math.isnan(point.accuracy)]
        return max(known, key=lambda point: point.accuracy or 0.0, default=None)


def is_against_reference(method: str) -> bool:
    """Returns whether a method measures rewards against a reference model; False for an unknown method."""
    return method in METHODS and METHODS[method].with_reference


def _is_simpo(method: str) -> bool:
    return method in METHODS and METHODS[method].is_simpo


def read_runs(folder: Path, name: str) -> list[Run]:
    """Returns the run in `folder`, once for each of its held-out sets.

    Args:
        folder: the output folder of a run.
        name: the name of the run; with several held-out sets, their names are added.

    Raises:
        SimPOError: a file in the folder cannot be read as JSON.
    """
    manifest = _read(folder / MANIFEST)
    state = _trainer_state(folder, manifest)
    log = [entry for entry in state.get("log_history", []) if isinstance(entry, Mapping)]
    results = _results(folder, manifest)
    prefixes = _prefixes([*log, results])
    several = len(prefixes) > 1
    return [_run(manifest, log, results, prefix, f"{name}: {prefix[5:-1]}" if several else name) for prefix in prefixes]


def read_record(folder: Path) -> tuple[Json, list[Json]]:
    """Returns the manifest of a run with its final results, and the log of its trainer.

    Raises:
        SimPOError: there is no manifest, or a file cannot be read as JSON.
    """
    if not (folder / MANIFEST).is_file():
        raise SimPOError(f"{folder} holds no {MANIFEST}, so it is not the folder of a run. Give a run's output_dir.")
    manifest = _read(folder / MANIFEST)
    log = [entry for entry in _trainer_state(folder, manifest).get("log_history", []) if isinstance(entry, Mapping)]
    results = {**_part(manifest, "results"), "metrics": _results(folder, manifest)}
    return {**manifest, "results": results}, log


def _run(manifest: Json, log: Sequence[Json], results: Json, prefix: str, name: str) -> Run:
    evaluations, final = _evaluations(manifest, log, results, prefix)
    method = str(manifest.get("method") or "simpo")
    sets, settings = _part(manifest, "data", "sets"), _part(manifest, method)
    held_out, trained_on = (_part(sets, which) for which in (prefix.rstrip("_"), "train"))
    unit = _unit(manifest, method, settings)
    # Evaluations of SimPO by averages are per token as they are.
    own = unit == PER_TOKEN and not is_against_reference(method)
    measured = _part(manifest, "held_out", prefix.rstrip("_"))
    per_token, scored = _per_token(measured, evaluations if own else ())
    if is_against_reference(method):
        evaluations = tuple(map(_without_tie, evaluations))
    return Run(
        name=name,
        status=_status(manifest, log),
        method=method,
        loss=str(manifest.get("own_loss") or _loss(settings)),
        conditions=Conditions.of(manifest, results, log),
        unit=unit,
        evaluations=evaluations,
        final=final,
        per_token=per_token,
        scored=scored or (final if own and final and not final.is_empty else None),
        same_rows=_same_rows(manifest),
        seconds=_number(results.get("train_runtime")),
        resumed_from=int(manifest.get("resumed_from_step") or 0),
        memory=_part(manifest, "peak_memory") or None,
        held_out=measured.get("tokens_sha256") or _fingerprint(held_out, method),
        held_out_rows=held_out.get("pairs", held_out.get("rows")),
        trained_on=_fingerprint(trained_on, method),
        model=str(_part(manifest, "model").get("label") or "not named"),
    )


def _evaluations(
    manifest: Json, log: Sequence[Json], results: Json, prefix: str
) -> tuple[tuple[Point, ...], Point | None]:
    """Returns the held-out evaluations by step, and that of the model that was saved."""
    entries = [entry for entry in log if not Point.of(entry, prefix, 0).is_empty]
    points = [Point.of(entry, prefix, _step(entry)) for entry in entries]
    last = Point.of(results, prefix, int(_part(manifest, "results").get("steps") or 0))
    timer = f"{prefix}runtime"
    if last.is_empty or (entries and results.get(timer) == entries[-1].get(timer)):
        return tuple(points), points[-1] if points else None
    # The last evaluation is later than the log. If it is that of the best model, its real step is earlier: not listed.
    if not _part(manifest, "recipe", "settings").get("load_best_model_at_end"):
        points.append(last)
    return tuple(points), last


def _per_token(measured: Json, evaluations: Sequence[Point]) -> tuple[tuple[Point, ...], Point | None]:
    """Returns all measurements of the held-out pairs per token, by step, and that of the model that was saved.

    Args:
        measured: what the manifest holds of the pairs under `held_out`.
        evaluations: the evaluations, if they are per token.
    """
    start, end = _part(measured, "start"), _part(measured, "end")
    scored = Point.scored(end, _step(end)) if end else None
    recorded = [Point.scored(start, 0)] if start else []
    recorded += [scored] if scored else []
    by_step = {point.step: point for point in (*recorded, *evaluations)}
    return tuple(by_step[step] for step in sorted(by_step)), scored


def _fingerprint(found: Json, method: str) -> str | None:
    """Returns the hash of the pairs of a set; in an older manifest SFT has only that of its own rows, for no use."""
    if "pairs_sha256" in found or method == "sft":
        return found.get("pairs_sha256")
    return found.get("tokens_sha256")


def _same_rows(manifest: Json) -> tuple[Point, ...]:
    """Returns the figures of the untrained and of the trained model on the same training rows."""
    start, end = _part(manifest, "start"), _part(manifest, "end")
    return Point.of(start, "", 0), Point.of(end, "", _step(end))


def _prefixes(entries: Sequence[Json]) -> list[str]:
    """Returns "eval_", or "eval_<set>_" of each held-out set, in the order of their evaluations."""
    found = [
        name.removesuffix(ACCURACY)
        for entry in entries
        for name in entry
        if name.startswith("eval_") and name.endswith(ACCURACY)
    ]
    return list(dict.fromkeys(found)) or ["eval_"]


def _without_tie(point: Point) -> Point:
    """Returns a point without its accuracy if it is of step 0: all rewards against the reference are 0 then."""
    return replace(point, accuracy=None) if point.step == 0 else point


# ---- The files in the folder ----


def _results(folder: Path, manifest: Json) -> Json:
    """Returns the last value of each metric; files of an earlier run in the same folder are not read."""
    metrics = dict(_part(manifest, "results", "metrics"))
    if manifest.get("status") != "finished":
        return metrics
    for kind, known in (("train", "train_runtime"), ("eval", "eval_runtime")):
        if known not in metrics and (file := folder / f"{kind}_results.json").is_file():
            metrics |= _read(file)
    return metrics


def _trainer_state(folder: Path, manifest: Json) -> Json:
    """Returns the state with the log: that of the end of training, or of the last checkpoint if there was no end."""
    file = folder / STATE
    if manifest.get("status") == "finished" and file.is_file() and _is_of(state := _read(file), manifest):
        return state
    there = checkpoints(folder)
    return _read(there[-1] / STATE) if there else {}


def _is_of(state: Json, manifest: Json) -> bool:
    """Returns whether a state belongs to this run: the state of an earlier run has another training time."""
    known = _part(manifest, "results", "metrics").get("train_runtime")
    times = [entry["train_runtime"] for entry in state.get("log_history", []) if "train_runtime" in entry]
    return known is None or not times or times[-1] == known


def _read(file: Path) -> Json:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SimPOError(
            f"{file} cannot be read: {error}. A run writes it as JSON; train the run again, or leave it out."
        ) from None
    if not isinstance(found, Mapping):
        raise SimPOError(
            f"{file} holds {type(found).__name__}, not an object as a run writes it. Train the run again, or leave it "
            "out."
        )
    return found


# ---- The entries of the manifest ----


def _status(manifest: Json, log: Sequence[Json]) -> str:
    status = str(manifest.get("status", "unknown"))
    if status == "finished":
        return status
    step = max([int(_part(manifest, "results").get("steps") or 0), *(_step(entry) for entry in log)])
    planned = _part(manifest, "batch").get("optimiser_steps")
    how = {"running": "running or killed", "interrupted": "interrupted"}.get(status, status)
    return f"{how}, step {step}" + (f" of {planned}" if planned else "")


def _loss(settings: Json) -> str:
    found = settings.get("loss_type") or ""
    return found if isinstance(found, str) else " + ".join(map(str, found))


def _unit(manifest: Json, method: str, settings: Json) -> str:
    if named := manifest.get("log_prob_unit"):
        return PER_TOKEN if named == PER_TOKEN else PER_ANSWER
    # Other methods are trl's, whose `logps/*` are sums; older manifests have only the setting.
    return PER_TOKEN if _is_simpo(method) and settings.get("average_log_prob", True) else PER_ANSWER


def _part(record: Json, *names: str) -> Json:
    """Returns the mapping under these nested names; empty if there is none."""
    for name in names:
        found = record.get(name)
        record = found if isinstance(found, Mapping) else {}
    return record


def _step(entry: Json) -> int:
    return int(entry.get("step", 0))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
