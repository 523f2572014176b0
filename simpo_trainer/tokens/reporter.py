"""One reporter for sets and streams: it counts tokenized rows, warns about them, and refuses unusable data."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..data.drops import DropReport
from ..log import get_logger

logger = get_logger(__name__)

# Rows after which a stream of which most are dropped is given up.
_TRIAL = 1000


class RowReporter:
    """Reports on the tokenized rows of a set: `count` each of them, then `end`.

    Args:
        name: name of the set in messages.
        max_length: limit of prompt + answer, in tokens, for the message about rows beyond it.
        overlong: "error" refuses a set with rows that were dropped for their length.
        on_bad_row: "error" refuses a set of which any row was dropped.
        ranked: whether rows are prompts with ranked answers.

    `report` holds the counts.
    """

    def __init__(
        self,
        name: str,
        *,
        max_length: int,
        overlong: str = "truncate",
        on_bad_row: str | None = None,
        ranked: bool = False,
    ):
        self.report = DropReport(name, ranked=ranked)
        self._refused_length = max_length if overlong == "error" else None
        self._refuses_dropped = on_bad_row == "error"

    def count(self, row: int, notes: Mapping[str, Any]) -> bool:
        """Count a row by its notes (see :meth:`~simpo_trainer.data.drops.DropReport.count`).

        Returns:
            Whether the row is kept.
        """
        return self.report.count(row, notes)

    def end(self) -> None:
        """Judge all that was counted: refuse it, or log warnings and a summary.

        Raises:
            SimPOError: rows are too long where that is an error, or more than half of them are dropped.
        """
        self._refuse_rows()
        self.report.check_enough_kept()
        self._warn()
        logger.info(self.report.summary())

    def _refuse_rows(self) -> None:
        if self._refused_length is not None:
            self.report.check_none_overlong(self._refused_length)
        if self._refuses_dropped:
            self.report.check_none_dropped()

    def _warn(self) -> None:
        report = self.report
        for _, warning in _warnings(report, f"{report.rows_kept} {report.unit}"):
            logger.warning(warning)


class StreamReporter(RowReporter):
    """Reports on a stream, whose end may never come: refuses and warns as soon as a row gives cause.

    Args:
        warned: the kinds of warnings that were logged already; readers of the same stream share it, so that each is
            logged once.
        limits: as :class:`RowReporter` takes them.
    """

    def __init__(self, name: str, *, warned: set[str], **limits: Any):
        super().__init__(name, **limits)
        self._warned = warned

    def count(self, row: int, notes: Mapping[str, Any]) -> bool:
        """Like `RowReporter.count`, for an open end.

        Raises:
            SimPOError: the rows up to this one are refused as those of a set are at its end.
        """
        kept = super().count(row, notes)
        self._refuse_rows()
        if self.report.rows_read == _TRIAL:
            self.report.check_enough_kept()
        self._warn()
        return kept

    def _warn(self) -> None:
        for kind, warning in _warnings(self.report, f"the first {self.report.rows_kept} {self.report.unit}"):
            if kind not in self._warned:
                self._warned.add(kind)
                logger.warning(warning)


def _warnings(report: DropReport, kept: str) -> Iterator[tuple[str, str]]:
    """Warnings about rows that are kept, by their kind; `kept` names all of those."""
    name, unit = report.name, report.unit
    if second := report.second_renderings:
        yield (
            "second rendering",
            f"{name}: in {second.count} of {kept} the chat template does not write prompt + answer behind the prompt "
            f"of inference (first row {second.first_row}: {second.detail}). There the answer's own text, and the token "
            "that ends it, are trained behind the generation header instead.",
        )
    for part, ignored in report.ignored.items():
        yield (
            f"without {part}",
            f"{name}: the chat template does not write {part} of {ignored.count} of {kept} (first row "
            f"{ignored.first_row}); these {unit} are trained without. Set chat_template to one for tools, and use it "
            "at inference too.",
        )
    if report.one_sided_ends:
        cut = (
            "some answers were cut and lost their end token, so they"
            if report.ranked
            else "one answer was cut and lost its end token, so the two"
        )
        yield (
            "one-sided ends",
            f"{name}: in {report.one_sided_ends} of {kept} only {cut} differ in how they end for their length alone. "
            "Raise max_length, or set overlong: drop.",
        )
