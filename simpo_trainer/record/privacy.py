"""Make settings and texts fit to publish: names instead of paths of this machine, no secrets."""

import getpass
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# Settings that describe only this machine.
_PRIVATE_KEYS = {"output_dir", "rescue_dir", "logging_dir", "cache_dir", "local_rank"}


def hub_name(name: str | None) -> str | None:
    """Returns `name` if it can be a name on the Hub ("org/model"); None for a path, or if such a path exists here."""
    if not name or Path(name).expanduser().exists() or name.startswith((".", "~")):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def local_label(path: str | Path) -> str:
    """Returns a label for a path with its last part only; for a home folder without any name."""
    path = Path(path).expanduser()
    name = path.name or path.absolute().name
    if not name or path.absolute() == Path.home() or name == _user():
        return "a local folder"
    return f"local {'file' if path.is_file() else 'folder'} {name!r}"


def public_label(name: str | None) -> str:
    """Returns a label for a model or data set: its Hub name, or the label of its local path."""
    return hub_name(name) or (local_label(name) if name else "not named")


def public_settings(value: Any) -> Any:
    """Returns a copy of settings without secrets and without paths of this machine, in types that JSON knows."""
    if isinstance(value, Mapping):
        return {
            _public_text(str(key)): public_settings(item)
            for key, item in value.items()
            if key not in _PRIVATE_KEYS and str(key).split("_")[-1] != "token"
        }
    if isinstance(value, set | frozenset):
        # In an order of their own: that of a set is another one in each process.
        return sorted((public_settings(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [public_settings(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | os.PathLike):
        return _public_text(os.fspath(value))
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def without_tokens(text: str) -> str:
    """Returns the text with "<token>" instead of tokens of the Hub."""
    return _TOKEN.sub("<token>", text)


def private_texts(*paths: str | Path | None, secrets: tuple[str | None, ...] = ()) -> dict[str, str]:
    """Returns the texts that must not appear in a published file, with a replacement for each; the longest first.

    Args:
        paths: files and folders of this machine that the published files may name.
        secrets: secret texts to replace by "<token>".
    """
    found = {str(Path.home()): "~"}
    for path in paths:
        if path and hub_name(str(path)) is None:
            absolute = Path(path).expanduser().absolute()
            # A path of one part, such as "/data", is too short to search for in a text.
            found |= {str(p): local_label(p) for p in (absolute, absolute.resolve()) if len(p.parts) > 2}
    found |= {secret: "<token>" for secret in secrets if secret}
    found.pop("/", None)
    return {text: found[text] for text in sorted(found, key=len, reverse=True)}


def _public_text(text: str) -> str:
    if _TOKEN.search(text):
        return without_tokens(text)
    is_path = text.startswith(("/", "~", "./", "../", "\\\\")) or bool(PureWindowsPath(text).drive)
    # A chat template may begin like a path, but has lines or braces.
    return local_label(text) if is_path and not re.search(r"[\n{}]", text) else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for the user id
        return ""
