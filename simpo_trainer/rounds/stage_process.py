"""A stage of an iteration as a process of its own, so that its memory is free for the next one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..run.options import STAGE
from ..train.stop import STOP_SIGNALS


def run_stage(words: Sequence[str]) -> int:
    """Run `simpo` with these words, and return its exit status; 128 + N after signal N.

    Signals to this process are passed on: the stage saves what it has, and ends. If this process is killed, the stage
    is too (run/orphans.py). Its output goes where that of this process goes.
    """
    signals = _Signals()
    with signals.passed_on():
        # In a session of its own, so that Ctrl-C, which a terminal sends to a whole group, reaches it once.
        stage = subprocess.Popen(
            [sys.executable, "-m", "simpo_trainer", *words], env={**os.environ, STAGE: "1"}, start_new_session=True
        )
        signals.pass_to(stage)
        status = stage.wait()
    if signals.came:  # also where it came too late to end the stage
        return 128 + signals.came[0]
    return status if status >= 0 else 128 - status


@dataclass
class _Signals:
    """The signals that came, and the process that they are passed on to, once it has started."""

    came: list[int] = field(default_factory=list)
    stage: subprocess.Popen[bytes] | None = None

    def pass_to(self, stage: subprocess.Popen[bytes]) -> None:
        """Pass signals on to a process, also those that came before it was there."""
        earlier, self.stage = len(self.came), stage
        for number in self.came[:earlier]:
            stage.send_signal(number)

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """While entered, signals that ask for a stop are passed on, and do not end this process."""
        # One that was ignored stays so, as nohup wants it.
        handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if self.stage is not None:
            self.stage.send_signal(number)
