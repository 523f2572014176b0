"""A scorer: what gives each answer a number, the higher the better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Row: TypeAlias = Mapping[str, Any]
# A row of answers with the score of each; None where it could not be scored.
Scored: TypeAlias = tuple[Row, list[float | None]]


class Scorer(Protocol):
    """Something that scores the answers of rows that `simpo generate` has written."""

    # What decides the scores, by name, for the data card: the kind of scorer, its name, its version.
    identity: dict[str, Any]

    def scores(self, rows: Sequence[Row]) -> Iterator[list[Scored]]:
        """Yields rows with the scores of their answers, in groups that are kept whole, in any order.

        A row's answers that cannot be scored get None, and a warning tells why.
        """
        ...
