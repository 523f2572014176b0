"""The command that trains under each engine, by the launcher files that are shipped, on CPU processes.

accelerate takes FSDP and DeepSpeed only where there is an accelerator; `on_cpu/sitecustomize.py` puts them in place.
"""

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILES = ROOT / "recipes" / "accelerate"
# The launcher file of each engine, and options of `accelerate launch` beside it.
ENGINES: dict[str, tuple[str, ...]] = {
    "one process": (),
    "DDP": ("ddp",),
    "FSDP2": ("fsdp2",),
    "FSDP2, parts": ("fsdp2", "--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
    "ZeRO-2": ("zero2",),
    "ZeRO-3": ("zero3", "--zero3_init_flag", "false"),
    "ZeRO-3, zero.Init": ("zero3",),
}
# Tested beside the engines of the matrix.
OFFLOADS: dict[str, tuple[str, ...]] = {"FSDP2, offload": ("fsdp2-offload",), "ZeRO-3, offload": ("zero3-offload",)}
_ALL = ENGINES | OFFLOADS


def needs_deepspeed(engine: str) -> bool:
    return engine.startswith("ZeRO")


def missing(engine: str) -> str | None:
    """Returns the package that an engine needs and that is not installed."""
    return "deepspeed" if needs_deepspeed(engine) and find_spec("deepspeed") is None else None


def command(engine: str, words: list[str], processes: int = 2, script: Path | None = None) -> list[str]:
    """Returns the command of a run; under `one process` the number of them is of no account.

    Args:
        engine: a key of `ENGINES` or `OFFLOADS`.
        words: what follows `simpo train`, or the script.
        processes: how many.
        script: a Python file to run instead.
    """
    program = [str(script)] if script else ["--module", "simpo_trainer", "train"]
    if not _ALL[engine]:
        return [sys.executable, *(["-m", *program[1:]] if script is None else program), *words]
    file, *options = _ALL[engine]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(_FILES / f"{file}.yaml")]
    ports = ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    return [sys.executable, *launch, *ports, *options, *program, *words]


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of such a command; what this process was launched by is left out."""
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    paths = [str(Path(__file__).parent / "on_cpu"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        **more,
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
