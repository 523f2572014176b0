"""Progress bars: shown on a terminal and in a notebook, and kept out of a log file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import datasets
from huggingface_hub import utils as hub
from transformers.utils import is_in_notebook, logging


def bars_can_be_seen() -> bool:
    """Returns whether somebody watches: the output is a terminal's or a notebook's, not a file or a pipe."""
    return sys.stderr.isatty() or is_in_notebook()


@contextmanager
def no_bars_in_a_file() -> Iterator[None]:
    """While entered, the libraries draw no progress bars where nobody would see one but as rubbish in a file.

    The switches hold for the whole process, so that they are put back at the end.
    """
    with ExitStack() as put_back:
        if not bars_can_be_seen():
            for are_off, off, on in _switches():
                put_back.callback(off if are_off() else on)
                off()
        yield


def _switches() -> list[tuple[Callable[[], bool], Callable[[], None], Callable[[], None]]]:
    """Returns for each library what tells whether its bars are off, what turns them off, and what turns them on.

    transformers' switch turns the Hub's too, so that the Hub's comes first: it is put back last, to what it was.
    """
    return [
        (hub.are_progress_bars_disabled, hub.disable_progress_bars, hub.enable_progress_bars),
        (lambda: not logging.is_progress_bar_enabled(), logging.disable_progress_bar, logging.enable_progress_bar),
        (datasets.are_progress_bars_disabled, datasets.disable_progress_bars, datasets.enable_progress_bars),
    ]
