"""Find mistakes in a run before anything is loaded."""

import json
import os
import tempfile
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from ..errors import SimPOError, did_you_mean, first_line
from ..model.load import check_dtype
from ..recipe.load import Recipe
from ..record.folders import MANIFEST
from ..record.methods import METHODS
from ..train.best_metric import check_best_metric
from ..train.evaluation import absent_metrics
from ..train.lock import unwritable
from ..train.optimisation import check_optimisation


def check_choices(recipe: Recipe) -> None:
    """Check the choices that the trainer would find wrong only after the data: optimiser, schedule, weights' type, ...

    Raises:
        SimPOError: optimiser or schedule cannot be built, the metric of the best model is not measured, 16-bit weights
            would train, torch cannot compile as asked, or FSDP has one process.
    """
    method, args = METHODS[recipe.method], recipe.training.settled()
    check_optimisation(recipe.baseline or args)
    absent = set(method.unmeasured)
    if method.is_simpo:
        # Whether the model has experts is not known yet, nor whether the trainer has a loss of its own.
        absent = absent_metrics(args.objective, parts=len(args.objective.parts) > 1, balanced=True)
    check_best_metric(recipe.baseline or args, absent=absent)
    if not _uses_deepspeed(recipe):
        check_dtype(str(recipe.model.model_name_or_path), args, adapter_follows=recipe.model.use_peft)
    if problems := [*_compile_problems(args), *_fsdp_problems(args)]:
        raise SimPOError("\n".join(problems))


def _uses_deepspeed(recipe: Recipe) -> bool:
    """Returns whether DeepSpeed will train, by the recipe or by the launcher that started this process."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return launched or bool(recipe.training.deepspeed)


def _compile_problems(args: TrainingArguments) -> list[str]:
    """Returns a sentence if torch.compile does not know the backend or the mode."""
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    if backend and backend.upper() not in DynamoBackend.__members__:
        names = [name.lower() for name in DynamoBackend.__members__]
        meant = did_you_mean(backend, names, 1) or f" It must be one of {', '.join(names)}."
        return [f"torch_compile_backend is {backend}, which accelerate does not have.{meant}"]
    if mode:
        try:
            torch.compile(torch.nn.Linear(1, 1), mode=mode)  # compiles nothing before its first call
        except RuntimeError as error:
            return [f"torch_compile_mode is {mode}: {first_line(error).rstrip('.')}. Correct it, or leave it out."]
    return []


def _fsdp_problems(args: TrainingArguments) -> list[str]:
    on_xla = bool(args.fsdp_config and args.fsdp_config.get("xla"))  # type: ignore[union-attr]
    if not args.fsdp or on_xla or args.parallel_mode == ParallelMode.DISTRIBUTED:
        return []
    return [
        "fsdp is set, which splits the model over processes, but this process trains alone. Leave fsdp out and start "
        "the run with --launcher fsdp2."
    ]


def prepare_folder(output_dir: Path, recipe: Recipe) -> None:
    """Make the folder of a run, and check that the run may write into it.

    Raises:
        SimPOError: it cannot be written, or is that of the starting model or tokenizer.
    """
    _make_writable(output_dir)
    _check_not_an_input(output_dir, recipe)


def _make_writable(output_dir: Path) -> None:
    """Make the folder now: otherwise the error would come only at the first checkpoint."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise unwritable(output_dir, error) from None


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


def check_same_method(output_dir: Path, method: str) -> None:
    """Refuse the folder of a run of another method: a baseline would overwrite the model to compare with.

    Raises:
        SimPOError: names both methods.
    """
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
