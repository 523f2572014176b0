"""The end of a run: the trained model is saved, evaluated and described, and pushed if that was asked for."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..errors import SimPOError, first_line
from ..log import get_logger
from ..publish.hub import push_later
from ..record.folders import MANIFEST, step_of
from ..record.seal import remove_checkpoint
from ..report.command import write_report
from .full_disk import EndSaves
from .going_on import seal_end

logger = get_logger(__name__)


def finish_run(trainer: Any) -> dict[str, float]:
    """Do what :meth:`~simpo_trainer.train.run_trainer.RunTrainer.finish` says; every process must call it.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer` that has trained.

    Raises:
        SimPOError: nothing was trained, the training was interrupted, or the push failed.
    """
    _check_trained(trainer)
    output_dir, stop_request = Path(str(trainer.args.output_dir)), trainer.stop_request
    came_late = stop_request.number  # behind the last step: training has not acted on it
    with stop_request, stop_request.deferred():
        stop_request.number = stop_request.number or came_late
        ends = EndSaves(trainer, output_dir)
        # Saved before all else: whatever fails then, hours of training are not lost.
        place = ends.model(lambda folder: _save(trainer, folder))
        metrics = {"train": _training_metrics(trainer)}
        ends.small("metrics and state of the training", lambda: _save_metrics(trainer, metrics))
        left_out = f"Stopped: the trained model is in {place}; what follows the training was left out."
        with stop_request.heeded(left_out):
            if trainer.eval_dataset is not None:
                metrics["eval"] = _evaluate(trainer)
                # The state again: its log now has the evaluation.
                ends.small("metrics of the evaluation", lambda: _save_metrics(trainer, metrics))
                trainer.held_out.measure_end()
            _publish(trainer, ends)
            _seal(trainer, ends)
    logger.info(f"Done: model, tokenizer and metrics are in {place}")
    return metrics["train"] | metrics.get("eval", {})


def _check_trained(trainer: Any) -> None:
    if trainer.interrupted:
        raise SimPOError(
            f"The training was stopped at step {trainer.state.global_step}, before its end; a checkpoint was saved. "
            "Go on with trainer.train(resume_from_checkpoint=True), or keep the model as it is with "
            "trainer.save_model()."
        )
    if trainer.train_metrics is None:
        raise SimPOError("finish() saves and evaluates what was trained, and nothing was. Call trainer.train() first.")


def _training_metrics(trainer: Any) -> dict[str, float]:
    """Returns the metrics of the training, none if nothing was left to train."""
    checkpoint = trainer.resumed_from
    if checkpoint and trainer.state.global_step == step_of(checkpoint):
        logger.warning(f"{checkpoint} is already the last step of this run; nothing was trained.")
        return {}
    return dict(trainer.train_metrics)


def _save_metrics(trainer: Any, metrics: Mapping[str, dict[str, float]]) -> None:
    """Write the metrics of each part, and the state of the trainer; what a full disk has cut is written anew."""
    if trainer.is_world_process_zero():
        _remove_if_cut(Path(str(trainer.args.output_dir)) / "all_results.json")
    for part, found in metrics.items():
        if found:
            trainer.save_metrics(part, found)
    if any(metrics.values()):
        trainer.save_state()


def _remove_if_cut(file: Path) -> None:
    """Remove a file that is no whole JSON: transformers adds to it, and would fail to read it."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        file.unlink()


def _save(trainer: Any, output_dir: Path) -> None:
    with _generation_cache(trainer):
        # Not pushed to the Hub yet: this is done once, with the evaluation in the card.
        trainer.save_model(str(output_dir), _internal_call=True)


def _publish(trainer: Any, ends: EndSaves) -> None:
    """Write the model card, and push if `push_to_hub` is true."""
    output_dir = ends.output_dir
    if ends.rescued and trainer.args.push_to_hub:
        logger.warning(f"Nothing is pushed to the Hub: it would be from {output_dir}, which has no room for the model.")
    if ends.rescued or not trainer.args.push_to_hub:
        ends.small("the model card", trainer.create_model_card)
        return
    try:
        with _generation_cache(trainer):
            trainer.push_to_hub()
    except Exception as error:  # for any error, the user must know that the training is not lost
        repo = trainer.hub_model_id or output_dir.absolute().name
        raise SimPOError(
            f"The training is done and the model is saved in {output_dir}, but it could not be pushed to the Hub: "
            f"{first_line(error)}. Nothing is lost. Push it when the Hub can be reached: {push_later(repo, output_dir)}"
        ) from error


def _seal(trainer: Any, ends: EndSaves) -> None:
    """Make the folder that of a finished run, if the model is in it; the last checkpoint guards it until then."""
    output_dir, is_main = ends.output_dir, trainer.is_world_process_zero()
    ends.small(MANIFEST, trainer.run_record.save)
    write_report_of(trainer)
    if ends.rescued:
        return

    def seal() -> None:
        if is_main:
            seal_end(output_dir, trainer.seal_facts())

    ends.small("the seal of the finished run", seal)
    _remove_last_checkpoint(trainer, output_dir)


def write_report_of(trainer: Any) -> None:
    """Write report.html about the run so far; a page that cannot be made costs a warning, not the run."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(str(trainer.args.output_dir))
    try:
        write_report([folder])
    except Exception as error:
        logger.warning(f"No report was written: {first_line(error)}. Try again with: simpo report {folder}")


@contextmanager
def _generation_cache(trainer: Any) -> Iterator[None]:
    """Switch the cache on in the saved configuration, for generation; Trainer switches it off during training."""
    trainer.model.config.use_cache = True
    try:
        yield
    finally:
        trainer.model.config.use_cache = trainer.args.use_cache


def _evaluate(trainer: Any) -> dict[str, float]:
    """Returns the evaluation of the trained model; the training's own at its last step is not repeated."""
    sets = trainer.eval_dataset
    losses = [f"eval_{name}_loss" for name in sets] if isinstance(sets, Mapping) else ["eval_loss"]
    at_end: dict[str, float] = {}
    # Later entries are of what the caller has evaluated since, which may be other rows.
    for entry in trainer.state.log_history[: trainer.logged_in_training]:
        if entry["step"] == trainer.state.global_step:
            at_end |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    known = all(loss in at_end for loss in losses) and not trainer.args.load_best_model_at_end
    return at_end if known else trainer.evaluate()


def _remove_last_checkpoint(trainer: Any, output_dir: Path) -> None:
    """Remove the checkpoint that was saved because training ended, and for no other reason.

    It guards the last steps until all else is saved. Then it is the saved model over again, with its optimiser.
    """
    args, state = trainer.args, trainer.state
    folder = output_dir / f"checkpoint-{state.global_step}"
    only_for_the_end = (
        args.save_strategy == SaveStrategy.STEPS
        and state.global_step == state.max_steps
        and not (state.save_steps > 0 and state.global_step % state.save_steps == 0)
        and not args.load_best_model_at_end
        and not (args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS))
    )
    resumed = trainer.resumed_from is not None and trainer.resumed_from.resolve() == folder.resolve()
    if not only_for_the_end or resumed or not folder.is_dir():
        return
    if trainer.is_local_process_zero():
        remove_checkpoint(folder)
    if trainer.is_world_process_zero():
        logger.info(
            f"Removed {folder}, saved only because training ended: the model in {output_dir} is the same. To keep such "
            "a checkpoint for a longer run, set save_steps to a divisor of its step, or save_strategy: epoch."
        )
