"""The most memory that a training has held."""

import sys
from typing import Any

import torch
from accelerate import Accelerator

# What `of` says of the figure: tensors on an accelerator, or everything that the process has ever held.
ACCELERATOR, PROCESS = "accelerator", "process"


def forget_peak(device: torch.device) -> None:
    """Begin to measure an accelerator's peak; that of a process cannot be begun anew."""
    if _peak_of_accelerator(device):
        torch.accelerator.reset_peak_memory_stats(device)


def peak_memory(accelerator: Accelerator) -> dict[str, Any] | None:
    """`bytes` of the process that has held the most, and `of` what; every process must call it.

    On an accelerator these are the bytes of tensors since :func:`forget_peak`, without the allocator's reserve. On the
    CPU it is the resident memory of the whole process from its start on: libraries, data and whatever ran before
    included.

    Returns:
        None where the system does not tell.
    """
    found = _peak_of_accelerator(accelerator.device)
    peaks = torch.tensor([found or _peak_of_process()], dtype=torch.int64, device=accelerator.device)
    highest = int(accelerator.gather(peaks).max())
    return {"bytes": highest, "of": ACCELERATOR if found else PROCESS} if highest else None


def _peak_of_accelerator(device: torch.device) -> int:
    """0 for the CPU, and for an accelerator whose allocator does not count."""
    if device.type == "cpu":
        return 0
    try:
        return torch.accelerator.max_memory_allocated(device)
    except RuntimeError:
        return 0


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
