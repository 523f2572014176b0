"""One run from start to end, in one process or many."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .one_run import Interrupted, run

__all__ = ["Interrupted", "run"]


def __getattr__(name: str):
    # Imported on first use: the launcher does not train, and need not wait for the trainers.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import one_run

    return getattr(one_run, name)
