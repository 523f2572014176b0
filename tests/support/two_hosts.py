"""Two hosts on one machine: network namespaces, each with an address of its own, joined by a cable.

They need root, and the right to make namespaces, which containers often lack.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MAIN = "10.77.0.1"
_LIMIT = 100  # seconds for everything that is waited for here


def missing() -> str | None:
    """Returns why there can be no hosts here."""
    if shutil.which("ip") is None:
        return "no `ip` command here"
    name = f"simpo-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=20)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], timeout=20)
    return None


class Hosts:
    """The two, by numbers 0 and 1.

    Args:
        folder: where commands run, and their output goes; a host may have one of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"simpo-{os.getpid()}-{number}" for number in (0, 1)]
        self._started: list[subprocess.Popen] = []

    def start(self, host: int, log: str, *words: str, folder: Path | None = None) -> subprocess.Popen:
        """Start `simpo train` with these words on a host; its output goes into a file of the folder."""
        launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in launched}
        environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "simpo_trainer", "train", *words]
        with (self.folder / log).open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=folder or self.folder,
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def processes(self, host: int) -> list[psutil.Process]:
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, timeout=20)
        return [psutil.Process(int(number)) for number in found.stdout.split() if psutil.pid_exists(int(number))]

    def lose(self, host: int) -> None:
        """End everything on a host at once, as if its power had gone."""
        for process in self.processes(host):
            process.kill()

    def end(self) -> None:
        for process in self._started:
            for host in (0, 1):
                self.lose(host)
            process.kill()
            process.wait(_LIMIT)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Two hosts, which are gone with their processes behind it."""
    hosts = Hosts(folder)
    cables = [f"s{os.getpid()}-{number}" for number in (0, 1)]  # 15 letters at most
    try:
        for name in hosts.names:
            _ip("netns", "add", name)
        _ip(
            *("link", "add", cables[0], "netns", hosts.names[0]),
            *("type", "veth", "peer", "name", cables[1], "netns", hosts.names[1]),
        )
        for number, (name, cable) in enumerate(zip(hosts.names, cables, strict=True)):
            _ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", cable)
            for device in ("lo", cable):
                _ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        hosts.end()
        for name in hosts.names:
            subprocess.run(["ip", "netns", "del", name], timeout=20, capture_output=True)


def ended(process: subprocess.Popen, log: Path) -> str:
    """Returns the output of a command that ends with status 0."""
    assert process.wait(_LIMIT) == 0, log.read_text()[-4000:]
    return log.read_text()


def wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    """Wait until a file is there; the process must not end meanwhile."""
    end = time.monotonic() + _LIMIT
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.02)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20, capture_output=True)
