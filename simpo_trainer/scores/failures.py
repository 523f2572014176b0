"""The warnings of answers that cannot be scored: the first ones in full, the others counted."""

from collections.abc import Mapping
from typing import Any

from ..data.messages import shorten
from ..log import get_logger

logger = get_logger(__name__)

# So many are told one by one.
_TOLD = 5


class Failures:
    """Counts the answers that have no score, and warns.

    Args:
        what: the failure, as in "could not be read".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.count = 0

    def tell(self, row: Mapping[str, Any], why: str) -> None:
        """Count an answer of a row, and warn if it is among the first."""
        self.count += 1
        if self.count <= _TOLD:
            start = next((message.get("content") for message in row["prompt"] if message.get("role") == "user"), "")
            logger.warning(f"An answer to {shorten(repr(start))} (key {row['key']}) {self._what}: {why}.")

    def tell_rest(self) -> None:
        """Warn of how many there were, unless each of them was told."""
        if self.count > _TOLD:
            logger.warning(f"{self.count:,} answers {self._what}; the first {_TOLD} are named above.")
