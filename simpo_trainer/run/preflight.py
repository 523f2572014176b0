"""Find mistakes in a run before anything is loaded."""

import json
import tempfile
from pathlib import Path

from ..errors import SimPOError
from ..recipe.load import Recipe
from ..record.folders import MANIFEST
from ..record.methods import METHODS
from ..train.best_metric import check_best_metric
from ..train.evaluation import absent_metrics
from ..train.optimisation import check_optimisation


def check_choices(recipe: Recipe) -> None:
    """Check optimiser, schedule and the metric of the best model, which the trainer would build after the data.

    Raises:
        SimPOError: one cannot be built, or is not measured.
    """
    method, args = METHODS[recipe.method], recipe.training.settled()
    check_optimisation(recipe.baseline or args)
    absent = set(method.unmeasured)
    if method.is_simpo:
        # Whether the model has experts is not known yet, nor whether the trainer has a loss of its own.
        absent = absent_metrics(args.objective, parts=len(args.objective.parts) > 1, balanced=True)
    check_best_metric(recipe.baseline or args, absent=absent)


def prepare_folder(output_dir: Path, recipe: Recipe) -> None:
    """Make the folder of a run, and check that the run may write into it.

    Raises:
        SimPOError: it cannot be written, is that of the starting model or tokenizer, or holds a run of another method.
    """
    _make_writable(output_dir)
    _check_not_an_input(output_dir, recipe)
    _check_same_method(output_dir, recipe.method)


def _make_writable(output_dir: Path) -> None:
    """Make the folder now: otherwise the error would come only at the first checkpoint."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise SimPOError(
            f"output_dir {output_dir} cannot be written: {error.strerror}. Set output_dir to a folder of yours."
        ) from None


def _check_not_an_input(output_dir: Path, recipe: Recipe) -> None:
    """Refuse the folder of the starting model or tokenizer: the trained model would overwrite it."""
    inputs = {
        "model_name_or_path": recipe.model.model_name_or_path,
        "tokenizer_name_or_path": recipe.data.tokenizer_name_or_path,
    }
    for key, name in inputs.items():
        if name and Path(name).expanduser().resolve() == output_dir.expanduser().resolve():
            raise SimPOError(
                f"output_dir and {key} are the same folder, {output_dir}; the trained model would overwrite it. Set "
                "output_dir to another folder."
            )


def _check_same_method(output_dir: Path, method: str) -> None:
    """Refuse the folder of a run of another method: a baseline would overwrite the model to compare with."""
    try:
        manifest = json.loads((output_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no run there, or one that ended before it wrote a manifest
        return
    earlier = manifest.get("method", "simpo")
    if earlier != method:
        raise SimPOError(
            f"output_dir {output_dir} holds a run of method {earlier}; this run is of method {method} and would "
            f"overwrite its model. Set output_dir to another folder, such as {output_dir}-{method}."
        )
