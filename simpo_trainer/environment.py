"""What a run stands on: versions of libraries, devices, and which optional packages there are."""

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

from ._version import __version__

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
_OPTIONAL_LIBRARIES = ("deepspeed", "flash-attn", "bitsandbytes", "kernels")


def library_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that a result depends on."""
    found = {"simpo-trainer": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *_OPTIONAL_LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Versions and devices of this machine, for a bug report: no paths, no names of users or hosts, no tokens."""
    kind, names = _accelerators()
    if kind is None:
        devices = f"none; CPU with {os.cpu_count()} cores"
    else:
        devices = ", ".join(names) if kind == "cuda" else f"{len(names)} x {kind}"
    return library_versions() | {"platform": platform.platform(), "devices": devices}


def hardware() -> dict[str, Any]:
    """The platform and the devices of this machine, as a manifest tells them."""
    _, names = _accelerators()
    return {"platform": platform.platform(), "devices": names or [f"CPU with {os.cpu_count()} cores"]}


def has_package(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def _accelerators() -> tuple[str | None, list[str]]:
    """The kind of accelerator, None without one, and the name of each that this process sees."""
    import torch  # only here: the command line answers without waiting for it

    if not torch.accelerator.is_available():
        return None, []
    kind = str(torch.accelerator.current_accelerator())
    count = torch.accelerator.device_count()
    return kind, [torch.cuda.get_device_name(index) if kind == "cuda" else kind for index in range(count)]
