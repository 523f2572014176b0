"""Recipe files: read a YAML file and the files that it extends into layers, whose entries know their line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import SimPOError
from .paths import find_recipe, recipes_folder


@dataclass(frozen=True)
class Entry:
    """A value and where it was given: `origin` for a list of origins, `place` as the beginning of a message."""

    value: Any
    origin: str
    place: str
    text: str | None = None  # as typed on the command line
    joins: bool = False  # a mapping that is merged into that of an earlier layer instead of replacing it


@dataclass
class Layer:
    """The entries of one file, or of the command line, and the problems with them.

    `undone` are values of earlier layers that this layer removes; None removes any value.
    """

    entries: dict[str, Entry]
    problems: list[str] = field(default_factory=list)
    undone: dict[str, Any] = field(default_factory=dict)


def read_layers(path: Path) -> list[Layer]:
    """Returns the layers of a recipe: the files that it extends first, the file at `path` last.

    Raises:
        SimPOError: a file is not found, cannot be read, is not a recipe, or extends itself.
    """
    layers: list[Layer] = []
    chain: list[Path] = []
    while True:
        chain.append(path.resolve())
        layer = _read(path, is_first=not layers)
        layers.insert(0, layer)
        extended = layer.entries.pop("extends", None)
        if extended is None:
            return layers
        path = _extended(path, extended)
        if path.resolve() in chain:
            names = " -> ".join(file.name for file in [*chain, path])
            raise SimPOError(f"{chain[0].name} extends itself: {names}. Remove one `extends:` line.")


_SOURCES = ("dataset_name", "dataset_mixer", "datasets")
# Keys that describe one source, and do not fit another source that a later layer names.
_OF_A_SOURCE = (
    *("dataset_config", "dataset_train_split", "dataset_test_split", "eval_dataset_name"),
    *("dataset_splits", "dataset_configs"),
)


def merge_layers(layers: Sequence[Layer]) -> dict[str, Entry]:
    """Returns the entries of all layers; an entry of a later layer replaces that of an earlier one.

    A layer that names a data source also removes the earlier source with its splits and configurations; a layer that
    gives a global batch removes an earlier accumulation.
    """
    merged: dict[str, Entry] = {}
    for layer in layers:
        superseded: set[str] = set()
        if any(key in layer.entries for key in _SOURCES):
            superseded |= {*_SOURCES, *_OF_A_SOURCE}
        if "global_batch_size" in layer.entries:
            superseded.add("gradient_accumulation_steps")
        for key, value in layer.undone.items():
            if key in merged and value in (None, merged[key].value):
                superseded.add(key)
        kept = {key: entry for key, entry in merged.items() if key not in superseded}
        merged = kept | {key: _joined(kept.get(key), entry) for key, entry in layer.entries.items()}
    return merged


def _joined(earlier: Entry | None, entry: Entry) -> Entry:
    if earlier is None or not entry.joins or not isinstance(earlier.value, dict):
        return entry
    return replace(entry, value=earlier.value | entry.value, origin=f"{earlier.origin}, {entry.origin}")


def scalar(text: str) -> Any:
    """Returns the value that YAML reads in `text`; if it is text or not valid YAML, `text` itself, with any `#`."""
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text
    return text if isinstance(value, str) and text[:1] not in "'\"" else value


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that lists repeated keys (PyYAML silently keeps the last one) and reads 5e-7 as a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if earlier := first.get(key.value):
                self.repeated.append(f"line {line}: {key.value} is given twice, first on line {earlier}. Keep one.")
            first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


# YAML 1.1 needs a dot in a number with an exponent; without this, 1e-8 inside a nested mapping would stay text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read(path: Path, is_first: bool) -> Layer:
    """Returns the mapping in a file as a layer; messages name extended files, the first file's path is added later."""
    if path.suffix in (".jsonl", ".json", ".parquet", ".csv"):
        raise SimPOError(f"{path} is data, not a recipe. Write a recipe (.yaml) with dataset_name: {path}")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise SimPOError(f"recipe {path} cannot be read: {error.strerror}. Name one YAML file.") from None
    except UnicodeDecodeError as error:
        raise SimPOError(f"recipe {path} is not a text file in UTF-8: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SimPOError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        raise SimPOError(f"{path} is empty; a recipe is a list of `key: value` lines.")
    if not isinstance(content, dict):
        raise SimPOError(f"{path} holds a {type(content).__name__}; a recipe is a mapping, one `key: value` a line.")
    assert isinstance(node, yaml.MappingNode)
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    file = "" if is_first else f"{path.name}, "
    entries = {}
    for key, value in content.items():
        line = lines.get(str(key), "?")  # "?" for a key such as `on`, which YAML does not read as text
        entries[str(key)] = Entry(value, f"{_label(path)}:{line}", f"{file}line {line}: ")
    return Layer(entries, [file + problem for problem in loader.repeated])


def _label(path: Path) -> str:
    """Returns a name for the file without its folder on this machine: its recipe name, or its file name."""
    folder = recipes_folder().resolve()
    resolved = path.resolve()
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else path.name


def _extended(path: Path, entry: Entry) -> Path:
    if not isinstance(entry.value, str):
        raise SimPOError(f"{path}: {entry.place}extends is {entry.value!r}; it must be the file or name of one recipe.")
    beside = path.parent / entry.value
    try:
        return beside if beside.is_file() else find_recipe(entry.value)
    except SimPOError as error:
        raise SimPOError(f"{path}: {entry.place}extends: {error}") from None
