"""A name that transformers has renamed and peft and trl still use."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_rename_warning() -> Iterator[None]:
    """While entered, the warning about `is_gradient_checkpointing` is not shown: no user of a run can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing", FutureWarning)
        yield
