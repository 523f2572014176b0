"""Ctrl-C during training: finish the step, save a checkpoint, stop; a second Ctrl-C stops at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .log import get_logger

if TYPE_CHECKING:
    from .publish.hub import HubTrainer

logger = get_logger(__name__)


class StopRequest:
    """While entered, turns the first SIGINT into `requested = True`; the second raises KeyboardInterrupt.

    Signal handlers belong to the main thread; entered in another one it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.info("Interrupted: finishing the step, then saving a checkpoint. Press Ctrl-C again to stop at once.")


class StopCallback(TrainerCallback):
    """Ends training after a step at which a stop was requested, with a checkpoint."""

    def __init__(self, trainer: "HubTrainer"):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.stop_requested:
            self.trainer.interrupted = True
            control.should_save = True
            control.should_training_stop = True
