"""Find recipes: files by path, and those that come with the package by name."""

import re
from pathlib import Path

from ..errors import SimPOError, near


def recipes_folder() -> Path:
    """The folder of the package's own recipes: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_files() -> dict[str, Path]:
    """The recipes that come with this package, by name ("paper/llama3-8b-instruct").

    Left out are launcher files and files whose name begins with an underscore, which other recipes extend.
    """
    folder = recipes_folder()
    files = sorted((file.relative_to(folder) for file in folder.rglob("*.yaml")), key=_by_size)
    return {
        file.with_suffix("").as_posix(): folder / file
        for file in files
        if file.parts[0] != "accelerate" and not file.name.startswith("_")
    }


def _by_size(file: Path) -> list[tuple[bool, int, str]]:
    """Order of names in which 7b comes before 13b."""
    parts = re.split(r"(\d+)", file.with_suffix("").as_posix())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe that is given by path, or by its name or the end of its name where that is unique.

    Raises:
        SimPOError: there is no such recipe, or several.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = recipe_files()
    wanted = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    # "recipes/quickstart.yaml" is how the documentation names it, also where only the installed package is there.
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
