"""The environment of a run: versions of libraries, devices, and installed optional packages."""

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

from ._version import __version__

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
_OPTIONAL_LIBRARIES = ("deepspeed", "flash-attn", "bitsandbytes", "kernels")


def library_versions() -> dict[str, str]:
    """Returns the versions of this package, Python and the libraries that a result depends on."""
    found = {"simpo-trainer": __version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *_OPTIONAL_LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Returns versions and devices of this machine for a bug report: no paths, users, hosts or tokens."""
    kind, names = _accelerators()
    if kind is None:
        devices = f"none; CPU with {os.cpu_count()} cores"
    else:
        devices = ", ".join(names) if kind == "cuda" else f"{len(names)} x {kind}"
    return library_versions() | {"platform": platform.platform(), "devices": devices}


def hardware() -> dict[str, Any]:
    """Returns the platform and the devices of this machine for a manifest."""
    _, names = _accelerators()
    return {"platform": platform.platform(), "devices": names or [f"CPU with {os.cpu_count()} cores"]}


def has_package(name: str) -> bool:
    """Returns whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def _accelerators() -> tuple[str | None, list[str]]:
    """Returns the kind of accelerator, None without one, and the name of each visible accelerator."""
    import torch  # only here: other commands need not wait for it

    if not torch.accelerator.is_available():
        return None, []
    kind = str(torch.accelerator.current_accelerator())
    count = torch.accelerator.device_count()
    return kind, [torch.cuda.get_device_name(index) if kind == "cuda" else kind for index in range(count)]
