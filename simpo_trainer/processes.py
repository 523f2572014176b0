"""Process groups: refuse one that is not what the launcher promised, and end one cleanly."""

import atexit
import os
import sys

import torch.distributed as dist

from .errors import SimPOError


def check_world_size(world_size: int) -> None:
    """Refuse to start where the launcher promised more processes than this one can see.

    Args:
        world_size: processes in this one's group.

    Raises:
        SimPOError: processes that do not know each other would train separate models into one folder.
    """
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised != world_size:
        raise SimPOError(
            f"The launcher started {promised} processes (WORLD_SIZE={promised}), but this process sees {world_size}: "
            "they would train unconnected copies into one folder. Launch with `torchrun --nproc_per_node N` or "
            "`accelerate launch --multi_gpu --num_processes N`, or unset WORLD_SIZE to train in one process."
        )


def end_group_at_exit() -> None:
    """Take the process group down when the program ends well; gloo's threads otherwise abort some finished runs."""
    atexit.register(_end_group)


def _end_group() -> None:
    # After an error other processes may be waiting in a collective, and taking the group down would wait for them.
    failed = getattr(sys, "last_value", None) is not None
    if dist.is_available() and dist.is_initialized() and not failed:
        dist.destroy_process_group()
