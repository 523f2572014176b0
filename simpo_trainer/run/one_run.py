"""One run from start to end: recipe, data, tokenizer, trainer, training, saved model, evaluation."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import get_peft_config

from ..data.load import load_preferences, source_names
from ..errors import SimPOError
from ..log import get_logger
from ..model.load import check_model_name, init_kwargs, load_tokenizer
from ..model.network import settle_network
from ..publish.hub import check_credentials
from ..recipe.facts import recipe_facts
from ..recipe.load import Recipe
from ..record.folders import checkpoints
from ..record.methods import METHODS
from ..record.privacy import without_tokens
from ..tokens.chat_templates import resolve_chat_template
from ..train.bars import no_bars_in_a_file
from ..train.checkpoints import find_checkpoint, set_aside_earlier
from ..train.going_on import AUTO, go_on, tell_of_finished
from ..train.identity import run_identity
from ..train.lock import one_run
from ..train.run_trainer import RunTrainer
from ..train.stop import NOTHING_YET, StopRequest
from ..train.trainer import SimPOTrainer
from .options import LAUNCHER_OPTIONS
from .packages import check_packages
from .preflight import check_choices, check_same_method, prepare_folder

logger = get_logger(__name__)


class Interrupted(Exception):
    """The signal `number` stopped the run, after a checkpoint was saved; `command` resumes the run from there."""

    def __init__(self, command: str, number: int) -> None:
        super().__init__(f"interrupted; go on with: {command}")
        self.command = command
        self.number = number


def run(recipe: Recipe, trainer_class: type[SimPOTrainer] = SimPOTrainer) -> dict[str, float]:
    """Train as `recipe` says, save model and tokenizer in its output_dir, evaluate, and return all metrics.

    All checks that need neither data nor a model come first, and files of an earlier run in output_dir are not touched
    before both are loaded. From then to the end, no other run can use output_dir. Before training begins, Ctrl-C,
    SIGTERM and the other signals of docs/interruptions.md end the process at once; after that, the current step is
    finished and a checkpoint is saved first. In a log file no library draws a progress bar meanwhile.

    Args:
        recipe: the result of :func:`~simpo_trainer.recipe.load_recipe`.
        trainer_class: the trainer to use for SimPO; a subclass of :class:`~simpo_trainer.SimPOTrainer` runs with any
            recipe of that method.

    Raises:
        SimPOError: a setting, the data or the environment must be corrected, or another run uses output_dir.
        Interrupted: the run was stopped before its end and can be resumed.
    """
    with StopRequest(at_once=NOTHING_YET) as stop_request, no_bars_in_a_file():
        _check(recipe)
        with one_run(recipe.training):
            return _run(recipe, trainer_class, stop_request)


def _check(recipe: Recipe) -> None:
    """Find what is wrong without a look at the files that another run may be writing."""
    for notice in recipe.notices:
        logger.warning(notice)
    check_packages(recipe.training, recipe.model)
    prepare_folder(Path(recipe.training.output_dir or ""), recipe)
    check_model_name(str(recipe.model.model_name_or_path), init_kwargs(recipe.training).get("gguf_file"))


def _run(recipe: Recipe, trainer_class: type[SimPOTrainer], stop_request: StopRequest) -> dict[str, float]:
    args = recipe.training
    output_dir = Path(args.output_dir or "")
    check_same_method(output_dir, recipe.method)
    wanted = args.resume_from_checkpoint
    checkpoint = None if wanted == AUTO else find_checkpoint(output_dir, wanted)
    check_credentials(args)
    if not args.push_to_hub:  # whose check has just reached the Hub
        model_names = [recipe.model.model_name_or_path, recipe.data.tokenizer_name_or_path]
        settle_network([*model_names, *source_names(recipe.data)])
    check_choices(recipe)
    chat_template = recipe.data.chat_template and resolve_chat_template(recipe.data.chat_template)

    with args.main_process_first(desc="loading the data"):
        train, test = load_preferences(
            recipe.data,
            args.seed,
            conversations=METHODS[recipe.method].on_conversations,
            on_bad_row=args.on_bad_row,
        )
    if test is None and args.eval_strategy != "no":
        raise SimPOError(
            "eval_strategy asks for evaluation during training, but there are no evaluation pairs. Set "
            "test_split_size: 0.05 to hold out a share of the pairs, dataset_test_split, or eval_strategy: 'no'."
        )
    if test is None:
        logger.info(
            "There are no evaluation pairs: nothing will tell how the model does on pairs that it was not trained on. "
            "Set test_split_size: 0.05 to hold out a share of them."
        )
    tokenizer = load_tokenizer(str(recipe.model.model_name_or_path), args, instead=recipe.data.tokenizer_name_or_path)
    if chat_template:
        tokenizer.chat_template = chat_template
    arguments = {
        "model": str(recipe.model.model_name_or_path),
        "train_dataset": train,
        "eval_dataset": test,
        "processing_class": tokenizer,
        "peft_config": get_peft_config(recipe.model),
    }
    trainer = _trainer(recipe, trainer_class, arguments)
    trainer.recipe_facts, trainer.stop_request = recipe_facts(recipe), stop_request
    if wanted == AUTO:
        going_on = go_on(output_dir, run_identity(trainer), allow_changes=args.allow_changes)
        if going_on.finished:
            return _finished(output_dir)
        checkpoint = going_on.checkpoint
    elif checkpoint is None and args.process_index == 0:
        tell_of_finished(output_dir)
    if args.process_index == 0:
        trainer.add_callback(_SetAside(output_dir, checkpoint))
    # One deferral over both: a signal between them must not lose the model.
    with stop_request.deferred():
        _train(trainer, recipe, checkpoint)
        return trainer.finish()


def _finished(output_dir: Path) -> dict[str, float]:
    """Say that there is nothing to do, and return the metrics that the run has left."""
    logger.info(
        f"This run is finished: its model is in {output_dir}. Nothing was trained. To train it again, set output_dir "
        "to another folder, or start over with --resume_from_checkpoint false."
    )
    try:
        return json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class _SetAside(TrainerCallback):
    """Renames checkpoints that are not this run's when training begins; after an earlier failure they stay unchanged.

    Args:
        output_dir: folder of the run.
        checkpoint: the checkpoint to resume from, if any.
    """

    def __init__(self, output_dir: Path, checkpoint: Path | None):
        self.output_dir = output_dir
        self.checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_aside_earlier(self.output_dir, self.checkpoint)


def _trainer(recipe: Recipe, trainer_class: type[SimPOTrainer], arguments: dict[str, Any]) -> RunTrainer:
    method = METHODS[recipe.method]
    if method.is_simpo:
        return trainer_class(args=recipe.training, **arguments)
    if trainer_class is not SimPOTrainer:
        raise SimPOError(
            f"{trainer_class.__name__} trains by SimPO, and the recipe's method is {recipe.method}. Set method: simpo, "
            "or run the recipe without a trainer class."
        )
    # Imported here: a run of SimPO does not need trl's trainers.
    baseline = method.load("trainer")
    return baseline(args=recipe.baseline, shared=recipe.training.settled(), **arguments)


def _train(trainer: RunTrainer, recipe: Recipe, checkpoint: Path | None) -> None:
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.interrupted:
        folder = Path(str(recipe.training.output_dir)) / f"checkpoint-{trainer.state.global_step}"
        if trainer.health.collapse:
            raise SimPOError(_collapsed(trainer, folder, resume_command(recipe, folder, stop_on_collapse="false")))
        command = resume_command(recipe, folder)
        logger.info(f"Stopped at step {trainer.state.global_step}. Go on with:\n  {command}")
        raise Interrupted(command, trainer.agreed_signal())


def _collapsed(trainer: RunTrainer, folder: Path, command: str) -> str:
    earlier = [each for each in checkpoints(folder.parent) if each != folder]
    since = f"from an earlier one ({', '.join(each.name for each in earlier)})" if earlier else "anew"
    return (
        f"Stopped at step {trainer.state.global_step}, because stop_on_collapse is true. {trainer.health.collapse}\n"
        f"Train {since} with what is named there (allow_changes: true goes on from a checkpoint with other settings). "
        f"This step is saved in {folder}; to go on as it is:\n  {command}"
    )


def resume_command(recipe: Recipe, checkpoint: Path, **changed: str) -> str:
    """Returns the shell command that resumes from `checkpoint` with the same recipe, launcher and overrides.

    If the launcher is not `simpo train --launcher`, it is unknown here, and `<launcher>` stands for it. `changed` holds
    overrides that take the place of the recipe's.
    """
    options = os.environ.get(LAUNCHER_OPTIONS)
    known = options is not None or recipe.training.world_size == 1
    words = ["simpo train" if known else "<launcher> -m simpo_trainer train", shlex.quote(str(recipe.path))]
    words += [options] if options else []
    for key, text in {**recipe.overrides, **changed}.items():
        if key != "resume_from_checkpoint":
            # A secret must not appear in a log.
            words.append(f"--{key}=" + ('"$HF_TOKEN"' if key == "hub_token" else shlex.quote(without_tokens(text))))
    return " ".join([*words, f"--resume_from_checkpoint={shlex.quote(str(checkpoint))}"])
