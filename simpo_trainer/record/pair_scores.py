"""`pair_scores.json`: the held-out pairs one by one under the untrained and the trained model, without their texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCORES_FILE = "pair_scores.json"
# Of more pairs, so many from all over the set are kept.
_MOST = 2000


@dataclass(frozen=True)
class PairScores:
    """Pairs of a set, chosen and rejected of each.

    Args:
        averages: log-probabilities in nats per token, (pairs, 2).
        lengths: answer tokens, (pairs, 2).
        sources: where each pair comes from; None where that is not known, or the same for all.
    """

    averages: np.ndarray
    lengths: np.ndarray
    sources: Sequence[str] | None = None

    def thinned(self) -> "PairScores":
        """Returns at most `_MOST` pairs from all over the set; of the same set the same ones."""
        if len(self.averages) <= _MOST:
            return self
        places = np.linspace(0, len(self.averages) - 1, _MOST).round().astype(int)
        sources = self.sources and [self.sources[place] for place in places]
        return PairScores(self.averages[places], self.lengths[places], sources)


@dataclass(frozen=True)
class ScoredSet:
    """A held-out set before and after training.

    Args:
        lengths: answer tokens, (pairs, 2).
        start: log-probabilities in nats per token of the untrained model, (pairs, 2); None if not measured.
        end: those of the last evaluation, with `step`; None if there was none.
        step: the step of `end`.
        sources: where each pair comes from; None where that is not known, or the same for all.
    """

    lengths: np.ndarray
    start: np.ndarray | None
    end: np.ndarray | None
    step: int
    sources: np.ndarray | None = None


def save_scores(folder: Path, name: str, fingerprint: str, scores: PairScores, step: int) -> None:
    """Put the scores of a set into the file, those of step 0 beside those of the last step.

    Args:
        folder: of the run.
        name: of the set.
        fingerprint: of its pairs; scores of other pairs under the name are replaced.
        scores: of all its pairs.
        step: of the model.
    """
    file, kept = folder / SCORES_FILE, scores.thinned()
    found = _read(file)
    known = found.get(name, {})
    if known.get("tokens_sha256") != fingerprint:
        known = {"tokens_sha256": fingerprint, "lengths": kept.lengths.tolist(), "sources": kept.sources}
    values = np.round(kept.averages.astype(float), 4).tolist()
    news = {"end": {"step": step, "averages": values}} if step else {"start": values, "end": None}
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps({**found, name: {**known, **news}}), encoding="utf-8")
    scratch.replace(file)


def read_scores(folder: Path) -> dict[str, ScoredSet]:
    """Returns the sets in the file by name; none without a file, or with one that cannot be read."""
    sets = {}
    for name, found in _read(folder / SCORES_FILE).items():
        try:
            sets[name] = _scored(found)
        except (KeyError, TypeError, ValueError):
            continue
    return sets


def _scored(found: Mapping[str, Any]) -> ScoredSet:
    start, end = found.get("start"), found.get("end")
    return ScoredSet(
        lengths=np.array(found["lengths"], dtype=float).reshape(-1, 2),
        start=None if start is None else np.array(start, dtype=float).reshape(-1, 2),
        end=None if end is None else np.array(end["averages"], dtype=float).reshape(-1, 2),
        step=0 if end is None else int(end["step"]),
        sources=None if found.get("sources") is None else np.array([str(each) for each in found["sources"]]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
