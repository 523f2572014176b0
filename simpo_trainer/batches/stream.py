"""Training pairs from a stream: the same micro-batches on any number of processes, without knowing the length.

Every process reads the whole stream and takes its share of each micro-step, so that all of them see the same end.
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

from datasets import Dataset
from torch.utils.data import IterableDataset

from ..data.fields import check_margin
from ..data.sources import readable_rows
from ..errors import SimPOError
from ..log import get_logger
from ..tokens.checks import check_token_rows
from ..tokens.ids import TokenIds
from ..tokens.reporter import StreamReporter
from ..tokens.rows import is_ranked, row_answers, row_length, row_pairs, token_columns
from .workers import errors_of_workers

logger = get_logger(__name__)


class StreamedPairs(IterableDataset):
    """Micro-batches of one process from a stream of token rows, without an end.

    Micro-step k of all processes together takes the next `batch_size * num_processes` rows: pairs, or prompts with
    their ranked answers. An optimiser step that the stream cannot fill at its end is left out, which is said, and the
    stream begins anew.

    Args:
        rows: what `tokenization.tokenize_stream` returned; a row with a `reason` is dropped.
        batch_size: rows per micro-batch and process.
        num_processes: number of processes.
        process_index: which of them this is.
        accumulation: micro-steps of an optimiser step.
        max_length: longest prompt + answer, in tokens.
        overlong: "error" to stop at a longer one.
        on_bad_row: "error" to stop at the first row that is dropped.
        ranked: whether rows are prompts with ranked answers.
        name: what messages call the stream.
        token_ids: refuses ids that the model has no embedding for; None to take all.
    """

    def __init__(
        self,
        rows: Iterable[dict[str, Any]],
        *,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        max_length: int,
        overlong: str = "truncate",
        on_bad_row: str | None = None,
        ranked: bool = False,
        name: str = "train",
        token_ids: TokenIds | None = None,
    ):
        self.rows = rows
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.accumulation = accumulation
        self.max_length = max_length
        self.overlong = overlong
        self.on_bad_row = on_bad_row
        self.ranked = ranked
        self.name = name
        self.token_ids = token_ids
        self._warned: set[str] = set()  # kinds of warnings, each of which is logged once however often rows are read

    @property
    def rows_per_step(self) -> int:
        """Returns the number of rows that all processes together take in one micro-step."""
        return self.batch_size * self.num_processes

    def pairs_after(self, steps: int) -> int | None:
        """Returns the pairs of the first `steps` optimiser steps; None for rows with several, which nobody counted."""
        return None if self.ranked else steps * self.rows_per_step * self.accumulation

    def first_rows(self, count: int) -> Dataset | None:
        """Returns at most `count` rows from the start of the first pass, on every process the same, or None."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(0)
        found = list(islice(self._kept(self._reporter()), count))
        if not found:
            return None
        names = [*(token_columns(found[0]) or ()), *(["margin"] if "margin" in found[0] else [])]
        return Dataset.from_list([{name: row[name] for name in names} for row in found])

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        start = self.process_index * self.batch_size
        with errors_of_workers():
            for taken in self._micro_steps():
                yield [{**row, "weight": 1.0} for row in taken[start : start + self.batch_size]]

    def _micro_steps(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows that all processes together take in each micro-step, in pass after pass over the stream.

        There is no end: a run that goes on from a checkpoint passes over as many micro-steps as were made, and finds
        its place without knowing how many a pass has.
        """
        for number in count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(number)  # a stream that shuffles does so anew
            yield from self._one_pass()

    def _one_pass(self) -> Iterator[list[dict[str, Any]]]:
        reporter = self._reporter()
        kept, report = self._kept(reporter), reporter.report
        size, steps = self.rows_per_step, 0
        while len(block := list(islice(kept, size * self.accumulation))) == size * self.accumulation:
            steps += 1
            for start in range(0, len(block), size):
                yield block[start : start + size]
        reporter.end()
        if not steps:
            raise SimPOError(
                f"{self.name}: the stream has {report.rows_kept} {report.unit} that can be trained on, and an "
                f"optimiser step takes {size * self.accumulation}. Lower the global batch, or use more data."
            )
        logger.info(
            f"{self.name}: the end of the stream, which is read again from its beginning. Its last {len(block)} "
            f"{report.unit} do not fill an optimiser step of {size * self.accumulation} and are left out."
        )

    def _reporter(self) -> StreamReporter:
        """Returns a reporter for one reading of the stream."""
        limits: dict[str, Any] = {"max_length": self.max_length, "overlong": self.overlong, "ranked": self.ranked}
        return StreamReporter(self.name, warned=self._warned, on_bad_row=self.on_bad_row, **limits)

    def _kept(self, reporter: StreamReporter) -> Iterator[dict[str, Any]]:
        """Yield the rows that can be trained on; `reporter` counts all of them."""
        for number, row in enumerate(readable_rows(self.rows, self.name)):
            row = {"row": number, **row}
            own_ids = "reason" not in row
            if "margin" in row and not is_ranked(row):
                check_margin(row["margin"], number, self.name)
            if own_ids:
                check_token_rows([row], self.max_length, f"{self.name}, row {number} of the stream")
                row |= _notes(row)
            if reporter.count(number, row):
                if self.token_ids:
                    self.token_ids.check_streamed(row, number, self.name, own_ids=own_ids)
                yield row


def _notes(row: dict[str, Any]) -> dict[str, Any]:
    """Returns for a row that came as token ids the notes that tokenization would have made."""
    answers = row_answers(row)
    length = row_length(row["prompt_ids"], answers)
    return {
        "reason": None,
        "cut": (False,) * (1 + len(answers)),
        "lost": 0,
        "length": length,
        "whole_length": length,
        "pairs": len(row_pairs(row)),
    }
