"""Versions of what a result depends on."""

import platform
from importlib import metadata

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
