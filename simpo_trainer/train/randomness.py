"""What only measures leaves the random numbers of the training alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """While entered, random numbers may be drawn; behind it they go on as if none had been.

    Each loader of batches draws a seed when it begins. Without this, dropout in the steps behind an evaluation would
    depend on whether there was one.

    Args:
        device: where the model is; the generators of the CPU, of Python and of numpy are kept besides.
    """
    kept, python, numpy = [] if device.type == "cpu" else [device], random.getstate(), np.random.get_state()
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(kept, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
