"""Process groups: refuse one that is not what the launcher promised, and end one cleanly."""

import atexit
import os
import sys
import time

import torch.distributed as dist

from ..errors import SimPOError


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
            "they would train unconnected copies into one folder. Launch with `simpo train RECIPE --launcher ddp "
            "--num-processes N`, `torchrun --nproc_per_node N` or `accelerate launch --multi_gpu --num_processes N`, "
            "or unset WORLD_SIZE to train in one process."
        )


def check_one_accelerator(count: int) -> None:
    """Refuse to split a batch over several accelerators inside one process.

    Args:
        count: accelerators that this process would use.

    Raises:
        SimPOError: there is more than one.
    """
    if count > 1:
        raise SimPOError(
            f"One process sees {count} accelerators; splitting a batch over them inside one process is not supported. "
            f"Launch one process each: simpo train RECIPE --launcher ddp --num-processes {count} (or accelerate launch "
            f"--num_processes {count} ...), or show the process a single one (CUDA_VISIBLE_DEVICES=0)."
        )


def end_group_at_exit() -> None:
    """Take the process group down when the program ends well; otherwise some finished runs on gloo end in SIGABRT."""
    atexit.register(_end_group)


def leave_group_as_it_is() -> None:
    """Undo `end_group_at_exit`, in a process that lost the others: taking the group down would wait for them."""
    atexit.unregister(_end_group)


def _end_group() -> None:
    # After an error other processes may be waiting in a collective, and taking the group down would wait for them.
    failed = getattr(sys, "last_value", None) is not None
    if dist.is_available() and dist.is_initialized() and not failed:
        dist.destroy_process_group()
        # A worker thread of gloo may still hold tensors of the last collective. To let go of them it needs the
        # interpreter, which aborts the process if it is already shutting down; asleep, it lets the thread through.
        time.sleep(0.2)
