"""The model that answers or scores, by the files that it is loaded from: its fingerprint, before it is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import xxhash

from ..errors import SimPOError, first_line
from ..model.network import settle_network

_PIECE = 1 << 24
# The files of a folder that decide what its model says; the others are reports.
_ENDINGS = {".safetensors", ".bin", ".gguf", ".model", ".jinja", ".py"}
_NAMES = {
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
}


def source_fingerprint(name: str, revision: str | None = None) -> str:
    """Returns what tells one model from another: a hash of a folder's files, or the commit of a repository.

    Of an adapter it tells its base too.

    Args:
        name: folder or Hub name.
        revision: branch, tag or commit on the Hub.

    Raises:
        SimPOError: it is no folder, and the Hub cannot be asked.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _commit(name, revision)
    found = xxhash.xxh3_128()
    for path in _files(folder):
        found.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                found.update(piece)
    base = base_of(folder)
    return found.hexdigest() + (f"+{source_fingerprint(base)}" if base else "")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and (path.suffix in _ENDINGS or path.name in _NAMES):
            yield path


def base_of(name: str | Path) -> str | None:
    """Returns the name of the model under an adapter in a folder; None for a whole model."""
    try:
        config = json.loads((Path(name).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path")


def _commit(name: str, revision: str | None) -> str:
    settle_network([name])
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        path = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    try:
        return str(huggingface_hub.HfApi().model_info(name, revision=revision).sha)
    except Exception as error:  # of the network, of the Hub, of a name that is none
        raise SimPOError(
            f"{name!r} is no folder, and the Hub does not tell its commit ({first_line(error)}). Check the name and "
            "the network."
        ) from error
