"""Names a process of several that hangs while the others wait for it."""

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..log import get_logger
from .group_store import connect, hosted_by_rank_0, is_reachable, store_address

logger = get_logger(__name__)
# Whichever process it is that sees it; the others of the package's lines come from rank 0 alone.
logger.setLevel(logging.INFO)

# Seconds without a report after which a process hangs, and how often it reports in that time.
LIMIT = 60.0
_REPORTS = 12
# So many processes read the reports of the others: more would only ask the store for the same.
_WATCHERS = 8
# Counts the trainings of this process, which are the same on all: each has names of its own in the store.
_TRAININGS = itertools.count()


class Report(NamedTuple):
    """Where a process is.

    Args:
        beat: how often it has reported.
        step: optimiser steps that it has made.
        part: how far it is in the next one.
        busy: whether it may take long for itself alone: it evaluates, saves, begins or ends.
    """

    beat: int
    step: int
    part: int
    busy: bool

    @property
    def position(self) -> tuple[int, int]:
        """Returns how far the training is."""
        return self.step, self.part

    def as_text(self) -> str:
        """Returns it as words for the store."""
        return " ".join(str(int(value)) for value in self)

    @staticmethod
    def read(text: str | bytes) -> "Report":
        """Returns what `as_text` made."""
        beat, step, part, busy = (int(word) for word in text.split())
        return Report(beat, step, part, bool(busy))


class Watch:
    """Tells from the reports of all processes which of them hang, by the clock of this process alone.

    A process hangs if it is behind another one, or gives no sign of life, for as long as the limit. One that is busy
    does not.

    Args:
        rank: of this process.
        limit: in seconds.
    """

    def __init__(self, rank: int, limit: float) -> None:
        self.rank = rank
        self.limit = limit
        self._last = float("-inf")
        self._reports: Sequence[Report] = ()
        self._silent_since: dict[int, float] = {}
        self._behind_since: dict[int, float] = {}
        self._named: set[int] = set()

    def look(self, reports: Sequence[Report], now: float) -> list[str]:
        """Returns what there is to say; only the lowest rank that does not hang says it, once for each.

        Args:
            reports: of all ranks, in their order.
            now: seconds of a clock that goes on.
        """
        if now - self._last > self.limit / 2:  # it was this process that stood still
            self._silent_since, self._behind_since = {}, {}
        self._last = now
        furthest = max(report.position for report in reports)
        for rank, report in enumerate(reports):
            before = self._reports[rank] if self._reports else report
            if report.busy or report.beat != before.beat:
                self._silent_since[rank] = now
            if report.busy or report.position != before.position or report.position == furthest:
                self._behind_since[rank] = now
        self._reports = reports
        hanging = {rank for rank in range(len(reports)) if self._stood(rank, now) >= self.limit}
        said = [f"Rank {rank} reports again." for rank in sorted(self._named - hanging)]
        self._named &= hanging
        if self.rank == min(set(range(len(reports))) - hanging, default=None):
            said += [_hangs(rank, self.limit, furthest[0] + 1) for rank in sorted(hanging - self._named)]
            self._named |= hanging
        return said

    def _stood(self, rank: int, now: float) -> float:
        """Returns for how many seconds a process gave no sign of life, or was behind."""
        since = (times.setdefault(rank, now) for times in (self._silent_since, self._behind_since))
        return now - min(since)


def _hangs(rank: int, limit: float, step: int) -> str:
    return f"Rank {rank} has not reported for {limit:.0f} s (the others wait for it at step {step})."


class Hanging(TrainerCallback):
    """Reports where this process is while it is entered, and says which other one hangs; never ends a run.

    It does nothing in a run of one process. The training marks its way as a callback, and by `counted`.

    Args:
        rank: of this process.
        processes: number of them.
    """

    def __init__(self, rank: int, processes: int) -> None:
        self.rank = rank
        self.processes = processes
        self.limit = LIMIT
        self._position, self._busy = (0, 0), True
        self._ended, self._changed = threading.Event(), threading.Event()
        self._answered = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Hanging":
        training = next(_TRAININGS)
        if self.processes > 1 and store_address() is not None:
            self._position, self._busy = (0, 0), True
            self._ended, self._changed = threading.Event(), threading.Event()
            self._answered = time.monotonic()
            self._thread = threading.Thread(target=self._report, args=(training,), name="rank-report", daemon=True)
            self._thread.start()
            if hosted_by_rank_0() and self.rank == 1:
                # A question to a process that is stopped may never come back.
                threading.Thread(target=self._watch_host, args=(self._ended,), name="host-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._busy = True
            self._ended.set()
            self._changed.set()
            self._thread.join(1.0)  # for its last word; a store that hangs is not waited for
            self._thread = None

    # ---- Where this process is ----

    def counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields the same batches, and marks each one that is there."""
        for batch in batches:
            self._mark()
            yield batch

    def _mark(self) -> None:
        self._position = (self._position[0], self._position[1] + 1)
        if self._busy:
            self._set_busy(False)

    def _set_busy(self, busy: bool) -> None:
        """Report it at once: what follows may not let the thread run."""
        if self._busy != busy:
            self._busy = busy
            self._changed.set()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._position = (state.global_step, 0)
        self._set_busy(False)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._position = (state.global_step, 0)
        self._set_busy(control.should_evaluate or control.should_save or control.should_training_stop)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        saves = control.should_save or args.save_strategy == SaveStrategy.BEST
        self._set_busy(saves or control.should_training_stop)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._set_busy(control.should_training_stop)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set_busy(True)

    # ---- The threads ----

    def _report(self, training: int) -> None:
        """Report and look until the training ends; a store that does not answer is asked again."""
        watch = Watch(self.rank, self.limit)
        names = [f"hanging/{training}/{rank}" for rank in range(self.processes)]
        store, ended, changed = None, self._ended, self._changed
        for beat in itertools.count():
            changed.clear()
            last = ended.is_set()
            with suppress(Exception):
                store = store or connect(self.limit / _REPORTS)
                try:
                    store.set(names[self.rank], Report(beat, *self._position, self._busy).as_text())
                    if self.rank < _WATCHERS and not last and store.check(names):
                        reports = [Report.read(text) for text in store.multi_get(names)]
                        for line in watch.look(reports, time.monotonic()):
                            _say(line)
                    self._answered = time.monotonic()
                except Exception:
                    store = None
            if last:
                return
            changed.wait(self.limit / _REPORTS)

    def _watch_host(self, ended: threading.Event) -> None:
        """Say that rank 0 hangs, which holds the store, when the store does not answer."""
        named, before = False, time.monotonic()
        while not ended.wait(self.limit / _REPORTS):
            now = time.monotonic()
            if now - before > self.limit / 2:  # this process itself stood still
                self._answered = now
            before = now
            silent = now - self._answered >= self.limit
            address = store_address()
            if silent and not named and address and is_reachable(address, self.limit / _REPORTS):
                named = True
                _say(_hangs(0, self.limit, self._position[0] + 1))
            elif named and not silent:
                named = False
                _say("Rank 0 reports again.")


def _say(line: str) -> None:
    logger.log(logging.INFO if line.endswith("again.") else logging.WARNING, line)
