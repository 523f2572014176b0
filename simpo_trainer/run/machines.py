"""One of several machines that train together: where the others reach it, and how they find each other."""

import os
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import psutil  # a requirement of accelerate

from ..errors import SimPOError
from ..log import get_logger

logger = get_logger(__name__)

PORT = 29500  # accelerate's
# Seconds for which the name of machine 0 may be unknown: a cluster that starts machines makes their names on the way.
_UNKNOWN = 60.0
# Seconds that machines wait for each other at the start, and for one that was lost: the default of torch.
JOIN = 600


@dataclass(frozen=True)
class Machine:
    """This machine, as the others see it.

    Args:
        address: by which they reach it.
        interface: the network interface that has the address, if it is known.
        is_main: whether it is the one at `--main-process-ip`.
    """

    address: str
    interface: str | None
    is_main: bool


def find_machine(main: str, port: int | None, wait: float = _UNKNOWN) -> Machine:
    """Returns this machine, found by the way that packets to machine 0 take; none is sent.

    Args:
        main: name or address of machine 0.
        port: of its rendezvous.
        wait: seconds for which a name may be unknown.

    Raises:
        SimPOError: the name stays unknown, or no network leads there.
    """
    family, address = _resolve(main, port or PORT, wait)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError as error:
            raise SimPOError(
                f"--main-process-ip is {main}, but no network of this machine leads there: {error.strerror}. "
                "Set it to an address of machine 0 that all machines reach."
            ) from None
        own = probe.getsockname()[0]
    is_main = own == address[0]
    # A machine may know its own name as a loopback address, which would lead the others to themselves.
    reached = main if is_main and ip_address(own).is_loopback else own
    return Machine(reached, _interface(own), is_main)


def rendezvous_words(machine: Machine, restarts: int) -> list[str]:
    """Returns the words of `accelerate launch` by which machines without ranks find each other.

    torch would learn from host names which machine holds the rendezvous, and finds none where the address is one of
    several; so it is told. accelerate looks whether the port is free where the rank is 0.
    """
    words = ["--machine_rank", "0" if machine.is_main else "1", "--rdzv_backend", "c10d"]
    words += ["--rdzv_conf", f"is_host={int(machine.is_main)},join_timeout={JOIN},read_timeout={JOIN}"]
    return [*words, *(["--max_restarts", str(restarts)] if restarts else [])]


def surroundings(machine: Machine, words: Sequence[str]) -> dict[str, str]:
    """Returns the environment variables of a launcher on this machine; what the user has set is left out.

    Args:
        machine: this one.
        words: the launcher's.
    """
    # Gloo would take the address of the host name, which is a loopback address on many machines.
    found = {"GLOO_SOCKET_IFNAME": machine.interface} if machine.interface else {}
    if "--rdzv_backend" in words:
        found["PET_LOCAL_ADDR"] = machine.address  # torch would take the host name
    if "--max_restarts" in words:
        # Processes that start anew would meet the words of those before them in the launcher's store.
        found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return {name: value for name, value in found.items() if name not in os.environ}


def as_prefix(variables: dict[str, str]) -> str:
    """Returns environment variables as a shell takes them before a command."""
    return "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())


def _resolve(main: str, port: int, wait: float) -> tuple[socket.AddressFamily, tuple]:
    end = time.monotonic() + wait
    told = False
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(main, port, type=socket.SOCK_DGRAM)[0]
            return family, address
        except socket.gaierror as error:
            if time.monotonic() > end:
                raise SimPOError(
                    f"--main-process-ip is {main}, which this machine cannot resolve ({error.strerror}). Set it to the "
                    "address of machine 0, or a name that all machines know."
                ) from None
        if not told:
            logger.info(f"Waiting for {main} to be known on this machine, for {wait:.0f} s at most.")
            told = True
        time.sleep(1)


def _interface(address: str) -> str | None:
    if ip_address(address).is_loopback:
        return None
    addresses = psutil.net_if_addrs().items()
    return next((name for name, found in addresses if address in {each.address for each in found}), None)
