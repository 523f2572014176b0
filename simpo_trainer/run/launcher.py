"""Launchers: turn a name or file and numbers of processes and machines into words for `accelerate launch`."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from ..errors import SimPOError, near
from ..recipe.paths import recipes_folder
from ..record.privacy import without_tokens
from .machines import find_machine, rendezvous_words, surroundings

_SHARDING = ("FSDP", "DEEPSPEED")


@dataclass(frozen=True)
class Processes:
    """The numbers of processes and machines from the command line; unset ones come from the launcher's file.

    `num_processes` is over all machines; if the file has none either, it is the number of accelerators visible here, or
    1 without any, times the machines. Several machines without a rank find each other by a rendezvous, after which
    `max_restarts` counts how often failed processes are started anew.
    """

    num_processes: int | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None
    max_restarts: int | None = None


def launcher_files() -> dict[str, Path]:
    """Returns the files of the launchers that come with this package, by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}


def launch_words(launcher: str, recipe_words: Sequence[str], processes: Processes) -> list[str]:
    """Returns the words after `accelerate launch` that train a recipe in several processes.

    Args:
        launcher: name of a launcher, or path of a configuration file of accelerate.
        recipe_words: the recipe and its overrides, as on the command line.
        processes: the numbers of processes and machines.

    Raises:
        SimPOError: the launcher is unknown, does not fit this machine, or is called inside another launcher.
    """
    if "LOCAL_RANK" in os.environ:
        raise SimPOError("This process was itself started by a launcher (LOCAL_RANK is set). Leave --launcher out.")
    file = _find_launcher(launcher)
    config = _read(file)
    kind = config.distributed_type.value
    machines = processes.num_machines or config.num_machines
    accelerators = torch.accelerator.device_count()
    # accelerate reads a file without a number of processes as -1.
    count = processes.num_processes or (
        config.num_processes if config.num_processes > 0 else max(accelerators, 1) * machines
    )
    problems = [
        *_machine_problems(processes, config, machines, count),
        *_process_problems(launcher, kind, count // machines, accelerators),
    ]
    if problems:
        raise SimPOError("\n".join(problems))
    words = ["--config_file", _short(file), "--num_processes", str(count)]
    for name in ("num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        if (value := getattr(processes, name)) is not None:
            words += [f"--{name}", str(value)]
    if machines > 1 and _meets(processes):
        main = processes.main_process_ip or config.main_process_ip
        here = find_machine(main, processes.main_process_port or config.main_process_port)
        words += rendezvous_words(here, processes.max_restarts or 0)
    if kind == "NO" and accelerators > 1 and torch.cuda.is_available():
        # A process that sees several GPUs would split its batch over them, which is refused.
        words += ["--gpu_ids", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]]
    return [*words, "--module", "simpo_trainer", "train", *recipe_words]


def variables_of(words: Sequence[str]) -> dict[str, str]:
    """Returns the environment variables that a launcher with these words needs on this machine.

    Raises:
        SimPOError: `--main-process-ip` is no address for this machine, or one of another for the machine of rank 0.
    """
    launch = launch_command_parser().parse_args(list(words))
    config = _read(Path(launch.config_file))
    main = launch.main_process_ip or config.main_process_ip
    if (launch.num_machines or config.num_machines) == 1 or not main:
        return {}
    here = find_machine(main, launch.main_process_port or config.main_process_port)
    rank = config.machine_rank if launch.machine_rank is None else launch.machine_rank
    if rank == 0 and not here.is_main:
        raise SimPOError(
            f"--machine-rank is 0, but --main-process-ip {main} is not an address of this machine (it is "
            f"{here.address}). Call the command with rank 0 on the machine that has it, or set an address of this one."
        )
    return surroundings(here, words)


def shown(words: Sequence[str]) -> str:
    """Returns the command as one line, to read and to paste into a shell; a secret is shown as a variable."""
    command = shutil.which("accelerate")
    if command and Path(command).parent == Path(sys.executable).parent:
        parts = ["accelerate", "launch"]
    else:  # the shell finds no `accelerate`, or that of another Python
        parts = [shlex.quote(sys.executable), "-m", "accelerate.commands.launch"]
    previous = ""
    for word in words:
        key, equals, _ = word.partition("=")
        if previous in _SECRETS:
            parts.append('"$HF_TOKEN"')
        elif key in _SECRETS and equals:
            parts.append(f'{key}="$HF_TOKEN"')
        else:
            parts.append(shlex.quote(without_tokens(word)))
        previous = word
    return " ".join(parts)


_SECRETS = ("--hub_token", "--hub-token")


def _find_launcher(launcher: str) -> Path:
    known = launcher_files()
    if launcher in known:
        return known[launcher]
    path = Path(launcher).expanduser()
    if path.is_file():
        return path
    by_nearness = near(path.stem, known, len(known), cutoff=0)
    raise SimPOError(
        f"launcher {launcher} not found. Launchers are {', '.join(by_nearness)}; or name a configuration file of "
        "accelerate (made by `accelerate config --config_file FILE`)."
    )


def _read(file: Path) -> Any:
    """Returns the configuration that accelerate reads from the file."""
    try:
        return load_config_from_file(str(file))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:  # no mapping, unknown keys, ...
        raise SimPOError(
            f"launcher file {file} is not a configuration of accelerate: {error}\n"
            "Make one with `accelerate config --config_file FILE`, or copy one from recipes/accelerate/."
        ) from None


def _short(file: Path) -> str:
    """Returns the path, relative to the current folder if it lies inside."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _meets(processes: Processes) -> bool:
    """Returns whether the machines find each other by a rendezvous, which gives them their ranks."""
    return bool(processes.num_machines) and processes.machine_rank is None


def _machine_problems(processes: Processes, config: Any, machines: int, count: int) -> list[str]:
    problems = []
    if machines == 1:
        if processes.machine_rank:
            problems.append(
                f"--machine-rank is {processes.machine_rank}, but there is one machine. Set --num-machines."
            )
        if processes.max_restarts:
            problems.append("--max-restarts is for several machines. Set --num-machines, or leave it out.")
        return problems
    rank = config.machine_rank if processes.machine_rank is None else processes.machine_rank
    if processes.max_restarts and not _meets(processes):
        problems.append(
            "--max-restarts needs machines that may come back with another rank. Leave --machine-rank out, and set "
            "--num-machines."
        )
    if rank >= machines:
        problems.append(f"--machine-rank is {rank}; of {machines} machines it is 0 to {machines - 1}.")
    if not (processes.main_process_ip or config.main_process_ip):
        problems.append(f"--num-machines is {machines}: all need --main-process-ip, the address of machine 0.")
    if count % machines:
        problems.append(
            f"--num-processes is {count}, counted over all machines; {count} do not divide among {machines} machines. "
            f"Set a multiple of {machines}."
        )
    return problems


def _process_problems(launcher: str, kind: str, local: int, accelerators: int) -> list[str]:
    """Returns a sentence for each problem with the processes of this machine."""
    problems = []
    if kind == "NO" and local > 1:
        problems.append(
            f"launcher {launcher} runs one process, but --num-processes is {local}. "
            "Set --launcher ddp (or fsdp2, zero2, zero3, ...), or leave --num-processes out."
        )
    if kind in _SHARDING and not accelerators:
        problems.append(
            f"launcher {launcher} splits the model over accelerators, but none is visible here; accelerate would run "
            "plain DDP on the CPU instead. Set --launcher ddp or single, or run it where accelerators are."
        )
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        problems.append(
            f"launcher {launcher} needs DeepSpeed, which is not installed. Run `pip install deepspeed`, or set "
            "--launcher fsdp2, which splits the model without it."
        )
    if 0 < accelerators < local:
        problems.append(
            f"{local} processes on this machine, but only {accelerators} accelerators are visible, and each process "
            f"needs its own. Set --num-processes {accelerators} for each machine, or show more (CUDA_VISIBLE_DEVICES)."
        )
    return problems
