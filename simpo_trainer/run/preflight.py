"""Find mistakes in a run before anything is loaded."""

import json
import tempfile
from pathlib import Path

from ..errors import SimPOError
from ..recipe.load import Recipe
from ..record.folders import MANIFEST


def prepare_folder(output_dir: Path, recipe: Recipe) -> None:
    """Make the folder of a run, and check that the run may write into it.

    Raises:
        SimPOError: it cannot be written, is what the model is made from, or holds a run of another method.
    """
    _make_writable(output_dir)
    _check_not_an_input(output_dir, recipe)
    _check_same_method(output_dir, recipe.method)


def _make_writable(output_dir: Path) -> None:
    """Make the folder now: else one that cannot be written would be noticed at the first checkpoint."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise SimPOError(
            f"output_dir {output_dir} cannot be written: {error.strerror}. Set output_dir to a folder of yours."
        ) from None


def _check_not_an_input(output_dir: Path, recipe: Recipe) -> None:
    """The trained model would be written over what it was made from."""
    inputs = {
        "model_name_or_path": recipe.model.model_name_or_path,
        "tokenizer_name_or_path": recipe.data.tokenizer_name_or_path,
    }
    for key, name in inputs.items():
        if name and Path(name).expanduser().resolve() == output_dir.expanduser().resolve():
            raise SimPOError(
                f"output_dir and {key} are the same folder, {output_dir}; the trained model would overwrite what it is "
                "made from. Set output_dir to another folder."
            )


def _check_same_method(output_dir: Path, method: str) -> None:
    """A baseline from a recipe of SimPO would otherwise write its model over the one that it is compared with."""
    try:
        manifest = json.loads((output_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no run there, or one that broke off before it had a manifest
        return
    earlier = manifest.get("method", "simpo")
    if earlier != method:
        raise SimPOError(
            f"output_dir {output_dir} holds a run of method {earlier}, and this one is of method {method}: its model "
            f"would be written over the other. Set output_dir to another folder, such as {output_dir}-{method}."
        )
