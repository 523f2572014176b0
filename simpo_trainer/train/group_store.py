"""A connection to the store of the process group, for words between processes beside the training."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist


def store_address() -> tuple[str, int] | None:
    """Returns host and port of the store that the launcher named; None without a launcher of several processes."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit() or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    return host, int(port)


def is_reachable(address: tuple[str, int], seconds: float) -> bool:
    """Returns whether something listens there; a process that hangs still listens, one that has ended does not."""
    try:
        socket.create_connection(address, seconds).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def hosted_by_rank_0() -> bool:
    """Returns whether rank 0 holds the store; torchrun and `accelerate launch` hold it in the launcher."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def connect(seconds: float) -> dist.Store:
    """Returns a client of the store, with names of its own for each attempt of a launcher that starts anew.

    Args:
        seconds: the longest time that connecting, and each question, shall take.

    Raises:
        OSError: no launcher has named a store, or nothing listens there.
        RuntimeError: it does not answer in time.
    """
    address = store_address()
    # torch would print a warning for each attempt to connect.
    if address is None or not is_reachable(address, seconds):
        raise ConnectionError("the store of the process group cannot be reached")
    client = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    # A store that rank 0 holds is new at each attempt, and machines that came back count their attempts from 0.
    attempt = "0" if hosted_by_rank_0() else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"simpo_trainer/{attempt}", client)
