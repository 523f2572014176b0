"""Find recipes: files by path, recipes of the package by name."""

import re
from pathlib import Path

from ..errors import SimPOError, near


def recipes_folder() -> Path:
    """Returns the folder of the package's recipes: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_files() -> dict[str, Path]:
    """Returns the recipes that come with this package, by name ("paper/llama3-8b-instruct").

    Files for launchers and clusters are left out, and files for other recipes to extend, whose names begin with an
    underscore.
    """
    folder = recipes_folder()
    files = sorted((file.relative_to(folder) for file in folder.rglob("*.yaml")), key=_by_size)
    return {
        file.with_suffix("").as_posix(): folder / file
        for file in files
        if file.parts[0] not in ("accelerate", "launch") and not file.name.startswith("_")
    }


def _by_size(file: Path) -> list[tuple[bool, int, str]]:
    """Returns a sort key that puts 7b before 13b."""
    parts = re.split(r"(\d+)", file.with_suffix("").as_posix())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def find_recipe(name: str | Path) -> Path:
    """Returns the file of a recipe given by its path, its name, or the end of its name if only one name has it.

    Raises:
        SimPOError: there is no such recipe, or several.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = recipe_files()
    wanted = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    # The documentation writes "recipes/quickstart.yaml"; this must work with an installed package too.
    wanted_name = wanted.as_posix().removeprefix("recipes/")
    if wanted_name in known:
        return known[wanted_name]
    matches = [key for key in known if key.endswith("/" + wanted_name)]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise SimPOError(f"recipe {name} is ambiguous: {' or '.join(matches)}. Write one of these names.")
    if path.is_dir():
        raise SimPOError(f"recipe {name} is a folder. Name one YAML file.")
    raise SimPOError(f"recipe {name} not found.{_nearest(path, known)}")


def _nearest(path: Path, known: dict[str, Path]) -> str:
    """Returns the files beside the path and the recipes that may have been meant, or where to look for them."""
    files = {file.name: str(file) for file in path.parent.glob("*.y*ml")}
    stems = {name.rpartition("/")[2]: name for name in known}
    found = [files[name] for name in near(path.name, files, 3)]
    stem = path.name.removesuffix(path.suffix) if path.suffix in (".yaml", ".yml") else path.name
    found += [stems[name] for name in near(stem, stems, 3)]
    if found:
        return f" Did you mean {' or '.join(dict.fromkeys(found))}?"
    return " Check the path; `simpo recipe list` shows the recipes that can be named."
