"""The file of scores: the rows of answers with the scores of each, made once and then read."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..answers.card import read_card, write_card
from ..answers.journal import Journal
from ..answers.progress import Progress
from ..answers.requests import hash_of
from ..answers.row_files import read_rows, write_rows
from ..errors import SimPOError
from ..log import get_logger
from .scorer import Scorer

logger = get_logger(__name__)

# Where no answer of so many rows can be scored, none of the others is tried.
_TRIED = 20


@dataclass
class ScoredFile:
    """The file of scores of a file of answers.

    Args:
        path: of the scores.
        answers: the file of answers.
        answer_rows: its rows.
        content: the hash of these rows.
        scorer: what scores them.
    """

    path: Path
    answers: Path
    answer_rows: Sequence[Mapping[str, Any]]
    content: str
    scorer: Scorer

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows with their `scores`; what is not there yet is scored now, and written.

        Raises:
            SimPOError: the file was changed, the disk is full, or nothing can be scored.
        """
        journal = Journal(self.path, {"answers": self.content, **self.scorer.identity})
        if self.path.exists():
            rows = self._written()
            journal.remove()
            logger.info(f"The scores are in {self.path} already.")
            return rows
        journal.open()
        self._score(journal)
        rows = [{**row, "scores": journal.rows[row["key"]]["scores"]} for row in self.answer_rows]
        generated = (read_card(self.answers) or {}).get("generated")
        annotated = {**annotated_facts(rows, self.scorer), "identity": self._identity}
        write_card(self.path, {**({"generated": generated} if generated else {}), "annotated": annotated})
        write_rows(self.path, rows)
        journal.remove()
        return rows

    @property
    def _identity(self) -> str:
        return hash_of(self.content, self.scorer.identity)

    def _written(self) -> list[dict[str, Any]]:
        """Returns the rows of the file, which is there: those of the answers, with their scores in the file."""
        scores = {row.get("key"): row.get("scores") for row in read_rows(self.path)}
        told = ((read_card(self.path) or {}).get("annotated") or {}).get("identity")
        rows = [{**row, "scores": scores.get(row["key"])} for row in self.answer_rows]
        fit = all(isinstance(row["scores"], list) and len(row["scores"]) == len(row["answers"]) for row in rows)
        if told != self._identity or not fit:
            raise SimPOError(
                f"{self.path} or its card was changed after `simpo annotate` wrote it. Remove the file, and "
                "its answers are scored again."
            )
        return rows

    def _score(self, journal: Journal) -> None:
        """Score the rows that the journal lacks."""
        waiting = [row for row in self.answer_rows if row["key"] not in journal.rows]
        done = len(journal.rows)
        if done and waiting:
            logger.info(f"{done:,} of {len(self.answer_rows):,} rows were scored before; going on with the others.")
        progress = Progress("rows scored", len(self.answer_rows), done)
        not_finite = 0
        # Nothing is kept of a scorer that does not work.
        works = any(score is not None for row in journal.rows.values() for score in row["scores"])
        held: list[dict[str, Any]] = []
        for group in self.scorer.scores(waiting) if waiting else ():
            for row, scores in group:
                finite = [score if score is not None and math.isfinite(score) else None for score in scores]
                not_finite += sum(map(_is_lost, scores, finite))
                held.append({"key": row["key"], "scores": [None if each is None else float(each) for each in finite]})
                works = works or any(score is not None for score in finite)
                if not works and len(held) == _TRIED:
                    raise _none_scored(len(held))
            if works:
                journal.add(held)
                held = []
                progress.update(len(journal.rows))
        if held:
            raise _none_scored(len(held))
        if not_finite:
            logger.warning(f"{not_finite:,} answers got a score that is no finite number: they count as not scored.")


def _is_lost(given: float | None, kept: float | None) -> bool:
    return given is not None and kept is None


def _none_scored(rows: int) -> SimPOError:
    return SimPOError(
        f"Not one answer of the first {rows} rows could be scored; the warnings above say why. Correct the scorer or "
        "its settings, and give the same command again."
    )


def annotated_facts(rows: Sequence[Mapping[str, Any]], scorer: Scorer) -> dict[str, Any]:
    """Returns the facts of the card on the scores of rows."""
    scores = sorted(_present(rows))
    answers = sum(len(row["scores"]) for row in rows)
    return {
        **scorer.identity,
        "rows": len(rows),
        "answers_scored": len(scores),
        "answers_not_scored": answers - len(scores),
        "scores": _spread(scores),
    }


def _present(rows: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    return (score for row in rows for score in row["scores"] if score is not None)


def _spread(scores: Sequence[float]) -> dict[str, float]:
    """Returns the least, the greatest and the quartiles of scores, which are sorted."""
    quartiles = statistics.quantiles(scores, n=4, method="inclusive") if len(scores) > 1 else [scores[0]] * 3
    names = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")
    return dict(zip(names, (scores[0], *quartiles, scores[-1]), strict=True))
