"""The peak memory of a training."""

import sys
from typing import Any

import torch
from accelerate import Accelerator

# The values of `of`: memory of tensors on an accelerator, or all resident memory of the process.
ACCELERATOR, PROCESS = "accelerator", "process"


def forget_peak(device: torch.device) -> None:
    """Reset the peak of an accelerator; that of a process cannot be reset."""
    if _peak_of_accelerator(device):
        torch.accelerator.reset_peak_memory_stats(device)


def peak_memory(accelerator: Accelerator) -> dict[str, Any] | None:
    """Returns the highest peak of all processes as `bytes`, and `of` what; every process must call it.

    On an accelerator these are the bytes of tensors since :func:`forget_peak`, without the allocator's reserve. On the
    CPU it is the resident memory of the whole process since its start, with libraries, data and earlier work.

    Returns:
        None where the system does not report it.
    """
    found = _peak_of_accelerator(accelerator.device)
    peaks = torch.tensor([own_peak(accelerator.device)], dtype=torch.int64, device=accelerator.device)
    highest = int(accelerator.gather(peaks).max())
    return {"bytes": highest, "of": ACCELERATOR if found else PROCESS} if highest else None


def own_peak(device: torch.device) -> int:
    """Returns the peak of this process alone in bytes, of the same memory as :func:`peak_memory`; 0 if unknown."""
    return _peak_of_accelerator(device) or _peak_of_process()


def _peak_of_accelerator(device: torch.device) -> int:
    """Returns the peak in bytes; 0 for the CPU, and for an accelerator whose allocator does not count."""
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
