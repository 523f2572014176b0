"""The options that start several processes."""

from typing import Annotated, Any

import typer


def _launching(*names: str, help: str, least: int | None = None, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, min=least, metavar=metavar, rich_help_panel="Launching processes")


Launcher = Annotated[
    str | None,
    _launching(
        metavar="NAME|FILE",
        help="Train in processes that `accelerate launch` starts, and show its command: single, ddp, fsdp2, "
        "fsdp2-offload, zero2, zero3, zero3-offload (explained in recipes/accelerate/), or a configuration file of "
        "accelerate.",
    ),
]
NumProcesses = Annotated[
    int | None,
    _launching(
        "--num-processes",
        least=1,
        help="Processes over all machines; unset means one for each visible accelerator, or one on the CPU.",
    ),
]
NumMachines = Annotated[
    int | None,
    _launching(
        "--num-machines",
        least=1,
        help="Machines that train together; the same command is called on each.",
    ),
]
MachineRank = Annotated[
    int | None,
    _launching(
        "--machine-rank",
        least=0,
        help="Number of this machine, from 0; unset, the machines find each other and number themselves.",
    ),
]
MainProcessIP = Annotated[str | None, _launching("--main-process-ip", help="Address of machine 0.")]
MainProcessPort = Annotated[
    int | None,
    _launching(
        "--main-process-port",
        help="A free port of machine 0, the same on all machines; unset means 29500.",
    ),
]
MaxRestarts = Annotated[
    int | None,
    _launching(
        "--max-restarts",
        least=0,
        help="How often failed processes are started anew on several machines without ranks: they go on from the last "
        "checkpoint, once a lost machine has called its command again.",
    ),
]
