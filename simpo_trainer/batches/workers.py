"""Workers that load batches: signals are left to the process that trains, and errors come to it as they are."""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawValue
from types import FrameType

from torch.utils.data import DataLoader, get_worker_info

from ..errors import SimPOError

# Beside SIGTERM, which also ends workers.
_LEFT_TO_TRAINING = ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
# Whether this process is at its end; workers share the memory.
_ending = RawValue("b", 0)


@atexit.register
def _end() -> None:
    # Registered later than multiprocessing's own, and so called before it: that ends workers by SIGTERM and waits.
    _ending.value = 1


def shield_workers(loader: DataLoader) -> DataLoader:
    """Keep a signal from killing the workers of a loader, and return the loader.

    Schedulers and terminals signal every process of a group. A worker that died of it would end the training process
    with an error, before that has finished its step and saved a checkpoint.
    """
    if loader.num_workers:
        inner = getattr(loader, "base_dataloader", loader)  # accelerate puts its own around the one that has workers
        inner.worker_init_fn = _Shield(inner.worker_init_fn)
    return loader


class _Shield:
    """Called in each worker as it starts."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner
        self.ending = _ending  # handed to workers that do not inherit this module as it is

    def __call__(self, worker: int) -> None:
        for name in _LEFT_TO_TRAINING:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if self.inner:
            self.inner(worker)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self.ending.value:
            os._exit(128 + number)


class WorkerError(SimPOError):
    """An error for users that a worker met.

    torch raises it again in the process that trains, with the worker's traceback as the message. Of that the end is
    kept, which is the message of the worker.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{WorkerError.__name__}: ")[2].rstrip())


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Let an error for users leave a worker with its message alone."""
    try:
        yield
    except SimPOError as error:
        if get_worker_info() is None:
            raise
        raise WorkerError(str(error)) from None
