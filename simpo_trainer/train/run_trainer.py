"""The base of every trainer of a run: it stops on request, resumes only what fits, and saves a whole model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from ..errors import SimPOError
from ..model.weights import load_weights
from ..publish.pushes import HubTrainer
from ..record.facts import RecipeFacts, RunFacts
from ..record.full_disk import ReportWriter
from ..record.manifest import ManifestCallback
from ..tokens.sets import TokenSet, token_set
from .agreement import check_same_folder, check_same_run
from .changes import ChangesCallback, OwnSettings, changes_of
from .checkpoints import (
    answer_of_main,
    check_adapter_fits,
    check_optimizer_fits,
    check_processes_fit,
    check_schedule_fits,
    find_checkpoint,
    rotate_checkpoints,
)
from .config import SimPOConfig
from .facts import run_facts
from .finish import finish_run, write_report_of
from .full_disk import CheckpointAttempt
from .hanging import Hanging
from .health import HealthMonitor
from .held_out import HeldOutCallback
from .identity import model_fingerprint, run_circumstances, run_identity
from .last_step import LastStep
from .lock import LockCallback, one_run
from .log_file import LogFileCallback
from .logged_steps import LoggedSteps
from .memory import out_of_memory
from .processes import end_group_at_exit
from .progress import show_lines
from .randomness import randomness_kept
from .room import Room, RoomCallback, is_split
from .same_rows import SameRowsCallback
from .samples import SampleCallback
from .saving import weights_rescued, with_tied_as_one, without_card, without_frozen_head, without_rotation
from .split_weights import gather_weights, gathers_checkpoints, load_split_lora, splits_lora
from .states import LoggingWindow, restore_states
from .stop import StopRequest
from .stop_callback import StopCallback


class RunTrainer(HubTrainer):
    """A trainer that loses nothing; each method says how it differs from `Trainer`'s.

    `stop_request` holds the signals that came, `interrupted` whether the last training ended because of one, or of a
    collapse that `health` saw, `resumed_from` the checkpoint that it went on from, `identity` what makes it the same
    run, `changes` the settings that changed in its middle, `train_metrics` what it returned, `logged_in_training` how
    many entries of the log it made, `recipe_facts` the recipe of a run from one, and `token_sets` the sets that the
    constructor got, by name.
    """

    # The name that a recipe gives to the method.
    method = "simpo"
    # The name of a trainer class with a loss of its own.
    own_loss: str | None = None
    # Unit of `logps/*`, None where trl logs them; and the margin that the loss aims at, None without one.
    log_prob_unit: str | None = None
    target_margin: float | None = None
    interrupted = False
    identity: Mapping[str, Any] | None = None
    changes: list[dict[str, Any]]
    resumed_from: Path | None = None
    train_metrics: dict[str, float] | None = None
    logged_in_training = 0
    recipe_facts: RecipeFacts | None = None
    token_sets: dict[str, TokenSet]
    stop_request: StopRequest
    same_rows: SameRowsCallback
    held_out: HeldOutCallback
    window: LoggingWindow
    health: HealthMonitor
    hanging: Hanging
    # Whether its evaluations measure the held-out pairs per token.
    evaluates_per_token = False
    _saves_checkpoint = False
    # The fingerprint of the model at the start of the training that a resume goes on with.
    _base_model: str | None = None
    _last_step: LastStep
    _attempt: CheckpointAttempt

    def _attach(self, *reports: TrainerCallback) -> None:
        """Add what every run has: the record, the measurement of the same rows, the stop, readable lines.

        Args:
            reports: callbacks that only log; they come after the record and the measurement, which they may read.
        """
        if self.accelerator.num_processes > 1:
            end_group_at_exit()
        self.stop_request, self.changes = StopRequest(), []
        self.run_record, self.same_rows = ManifestCallback(self), SameRowsCallback(self)
        self.held_out, self.window = HeldOutCallback(self), LoggingWindow(self)
        self.health = HealthMonitor(self)
        self.room, self._reports, self._last_step = Room(self), ReportWriter(), LastStep(self)
        self.hanging = Hanging(self.args.process_index, self.accelerator.num_processes)
        # These two come last: they must know whether the others ask for a checkpoint.
        last = (LoggedSteps(), StopCallback(self), LockCallback(), self.hanging)
        # That of the room comes before the record: a run that is refused has changed nothing.
        first = (self._last_step, RoomCallback(self), ChangesCallback(self))
        record = (self.run_record, self.same_rows, self.held_out, self.window, LogFileCallback())
        for callback in (*first, *record, *reports, self.health, SampleCallback(self), *last):
            self.add_callback(callback)
        show_lines(self)
        # transformers would replace the callbacks by new ones, which nobody else holds; see `restore_states`.
        self.args.restore_callback_states_from_checkpoint = False

    def facts(self) -> RunFacts:
        """Returns the facts of this run, for its record."""
        return run_facts(self)

    def method_settings(self) -> dict[str, Any]:
        """Returns the method's settings, without those of `TrainingArguments` and of the model's loader."""
        raise NotImplementedError

    def describe_loss(self) -> str:
        """Returns a sentence in Markdown about the loss that is minimised."""
        raise NotImplementedError

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step; the same on every process."""
        raise NotImplementedError

    def rows_to_measure(self, count: int) -> Any:
        """Returns at most `count` rows of the training set, the same on every call; None if none can be measured."""
        raise NotImplementedError

    def measure(self, rows: Any) -> dict[str, float]:
        """Returns the model's metrics on rows from `rows_to_measure`, without a graph; every process must call it."""
        raise NotImplementedError

    def window_sums(self) -> dict[str, Any]:
        """Returns this process's sums of metrics since the last log, as JSON; none where they are kept elsewhere."""
        return {}

    def add_window_sums(self, sums: Mapping[str, Any]) -> None:
        """Add sums that `window_sums` returned to the logging window."""

    def held_out_sets(self) -> dict[str, Any]:
        """Returns the token rows of the evaluation sets that the constructor got and that hold pairs, by name."""
        return {name: found.rows for name, found in self.token_sets.items() if name.split("_")[0] == "eval"}

    def held_out_batches(self, rows: Any) -> DataLoader:
        """Returns this process's micro-batches of such rows, for scoring."""
        raise NotImplementedError

    def _token_set(
        self, dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, settings: SimPOConfig, *, of_run: bool
    ) -> TokenSet:
        """Returns the token rows of a set. The main process of a machine makes them, the others read its cache.

        Args:
            of_run: whether the set was given to the constructor. The record of the run tells of those alone, whatever
                is evaluated beside them under the same name.
        """
        with settings.main_process_first(desc=f"tokenizing the {name} set"):
            found = token_set(dataset, name, tokenizer, settings, num_proc=settings.dataset_num_proc)
        if of_run:
            self.token_sets[name] = found
        return found

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Like `Trainer.train`, but a stop signal ends the step, saves a checkpoint and sets `interrupted`.

        Args:
            resume_from_checkpoint: a `checkpoint-N` folder, or True for the newest one in the output folder.
            args, kwargs: further arguments of `Trainer.train`.

        Raises:
            SimPOError: the checkpoint is incomplete, or is of another model, adapter or optimiser; or the memory of the
                accelerator was not enough; or the disk has no room for what the run must save; or another run uses the
                output folder.
        """
        with one_run(self.args):
            return self._train_alone(resume_from_checkpoint, *args, **kwargs)

    def _train_alone(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> Any:
        """Train in a folder that no other run uses."""
        self.interrupted, self.train_metrics, self.changes = False, None, []
        if self._base_model is None or not resume_from_checkpoint:
            # The other processes may have no weights yet.
            self._base_model = answer_of_main(lambda: model_fingerprint(cast(torch.nn.Module, self.model)))
        self.identity = run_identity(self, self._base_model)
        output_dir, processes = Path(str(self.args.output_dir)), self.accelerator.num_processes
        check_same_run(self.identity, output_dir, processes)
        self.resumed_from = checkpoint = find_checkpoint(output_dir, resume_from_checkpoint)
        self.window.opened = None
        if checkpoint:
            check_same_folder(checkpoint, processes)
            self.changes = changes_of(self, checkpoint, allowed=self._allows_changes())
            if isinstance(self.model, PeftModel):
                check_adapter_fits(checkpoint, self.model)
            if self.is_deepspeed_enabled:
                check_processes_fit(checkpoint, processes)
            restore_states(self.callback_handler.callbacks, checkpoint)
        with self.stop_request, self.stop_request.deferred(), self.hanging:
            try:
                output = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
            except RuntimeError as error:
                if should_reduce_batch_size(error):
                    raise out_of_memory(self.args, self.state.global_step) from error
                raise
        self.train_metrics, self.logged_in_training = dict(output.metrics), len(self.state.log_history)
        if self.interrupted:
            write_report_of(self)
        return output

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Like `Trainer.get_batch_samples`, but a process that waits for its batches is told from the others."""
        return super().get_batch_samples(self.hanging.counted(epoch_iterator), num_batches, device)

    def finish(self) -> dict[str, float]:
        """Save, evaluate and describe the trained model: all that `simpo train` leaves in `output_dir`. Call it last.

        After :meth:`train`, in this order: model (or adapter) and tokenizer are saved, then metrics and state of the
        training; the evaluation set, if there is one, is evaluated, unless the training has done so at its last step,
        and its pairs are scored per token for `simpo compare`; the metrics are saved, and README.md, a model card with
        training curves, is written. With `push_to_hub` all of it is pushed. A checkpoint that was saved only because
        training ended is removed then. Every process must call it.

        Ctrl-C and SIGTERM wait until the model is saved, and then end the process. If the disk is full, the model goes
        to `rescue_dir` if that is set; otherwise saving is tried again each minute, until a signal ends it.

        Returns:
            The metrics of the training (`train_loss`, `train_runtime`, ...) and of the evaluation (`eval_...`).

        Raises:
            SimPOError: there was no training, or it was stopped before its end; or the push failed, when all else was
                saved; or another run uses the output folder.
        """
        with one_run(self.args):
            return finish_run(self)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Like `Trainer.evaluate`, but the training goes on as if it had not been evaluated."""
        with randomness_kept(self.accelerator.device):
            return super().evaluate(*args, **kwargs)

    def _prepare_input(self, data: Any) -> Any:
        """Like `Trainer._prepare_input`, but under DeepSpeed margins are not rounded to 16 bits."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def agreed_signal(self) -> int:
        """Returns the signal that stopped the training, on every process the same; every process must call it."""
        own = torch.tensor([self.stop_request.number or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(own).max())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Like `Trainer.log`, but a reporter without room on the disk does not end the training."""
        self._reports.write("a report of the metrics", lambda: super(RunTrainer, self).log(logs, start_time))

    # ---- Saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like `Trainer.save_model`, but a trained model is gathered and written whole, whatever its checkpoints are.

        Every process must call it. Under FSDP with `SHARDED_STATE_DICT` the parent writes no model, without a word, and
        under ZeRO-3 without the setting to gather it writes only the parts of each process.

        Raises:
            SimPOError: no weights were written.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self._saves_checkpoint and not (self.is_fsdp_enabled and gathers_checkpoints(self.accelerator)):
            super().save_model(output_dir, _internal_call)
            return
        if self.is_fsdp_enabled:
            self._save(str(folder), gather_weights(self.accelerator, self.model_wrapped))
            if self._saves_checkpoint:
                return
        else:
            with _gathering(self.model_wrapped):
                super().save_model(str(folder), True)
        written = [*folder.glob("*model*.safetensors"), *folder.glob("*/adapter_model.safetensors")]
        if self.args.should_save and not written:
            raise SimPOError(
                f"The model was trained, but no weights were written into {folder}. Save it by save_pretrained."
            )
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Like `Trainer._save`, but the weights are written even where something beside them cannot be.

        An adapter comes without peft's card, which is a form to fill in; a README.md in the folder stays as it is.
        """
        folder = str(output_dir or self.args.output_dir)
        # In a checkpoint of a model that is not split the other processes wait behind this, whether or not it is full.
        noting = self._saves_checkpoint and not is_split(self)
        with (
            self._attempt.noting() if noting else nullcontext(),
            without_card(self.model),
            weights_rescued(self.model, state_dict, folder),
        ):
            weights = without_frozen_head(self.model, with_tied_as_one(self.model, state_dict))
            super()._save(output_dir, weights)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Like `Trainer._save_checkpoint`, but it is sealed when all is written, and older ones are removed after.

        Raises:
            SimPOError: there is no room for it; what was written of it is removed.
        """
        output_dir = Path(self._get_output_dir(trial=trial))
        self._attempt = CheckpointAttempt(self, output_dir / f"checkpoint-{self.state.global_step}")
        if not self._attempt.begin():
            return
        self.window.collect()
        self._saves_checkpoint = True
        try:
            with self._attempt.writing(), without_rotation():
                # Not `super()`: between this class and transformers', trl's would write a card for every checkpoint.
                Trainer._save_checkpoint(self, model, trial)
        finally:
            self._saves_checkpoint = False
        self.accelerator.wait_for_everyone()
        if self._attempt.seal(self.seal_facts()) and self.args.should_save:
            rotate_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Like the parent's, whose answer decides under `save_strategy: best` whether a stopped step is saved."""
        return super()._determine_best_metric(metrics, trial) or self.interrupted

    def seal_facts(self) -> dict[str, Any]:
        """Returns what a seal holds of the run: what makes it the same one, what may change, and what has changed."""
        state = self.state
        return {
            "step": state.global_step,
            "processes": self.accelerator.num_processes,
            # By a callback, such as early stopping: what goes on from here trains nothing more.
            "ended": self.control.should_training_stop and not self.interrupted and state.global_step < state.max_steps,
            "run": self.identity,
            "changes": self.changes,
            "circumstances": run_circumstances(self),
        }

    # ---- Resuming ----

    def _allows_changes(self) -> bool:
        settings: Any = getattr(self, "shared", self.args)
        return bool(settings.allow_changes)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        """Like `Trainer.set_initial_training_values`, but from the last step on there are no epochs to train."""
        return self._last_step.left(super().set_initial_training_values(*args, **kwargs))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Like `Trainer._load_from_checkpoint`, but every weight that was saved is loaded, or there is an error."""
        if self._is_whole_here():
            load_weights(self.model, resume_from_checkpoint)  # type: ignore[arg-type]
        elif self._reads_split_lora():
            load_split_lora(self.model_wrapped, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Like `Trainer._load_best_model`, but every weight that was saved is loaded, or there is an error."""
        best = self.state.best_model_checkpoint
        if best is not None and self._is_whole_here():
            load_weights(self.model, best)  # type: ignore[arg-type]
        elif best is not None and self._reads_split_lora():
            load_split_lora(self.model_wrapped, best)
        else:
            super()._load_best_model()

    def _is_whole_here(self) -> bool:
        """Returns whether this process holds all weights of a model without adapters."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return isinstance(self.model, PreTrainedModel) and not sharded

    def _reads_split_lora(self) -> bool:
        """Returns whether the model is LoRA in parts, and its checkpoints hold it whole."""
        return splits_lora(self.accelerator, self.model_wrapped) and gathers_checkpoints(self.accelerator)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Like `Trainer._load_optimizer_and_scheduler`, but only where the state in the checkpoint fits this run.

        Raises:
            SimPOError: the state belongs to other weights, or to other settings, which a resume would silently keep.
        """
        if checkpoint is None:
            return
        allowed = self._allows_changes()
        file = Path(checkpoint) / "optimizer.pt"
        if file.is_file() and not self.is_fsdp_enabled:
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            check_optimizer_fits(Path(checkpoint), saved, cast(Optimizer, self.optimizer), settings=not allowed)
        own, wanted = OwnSettings(self.optimizer, self.lr_scheduler), _peak_rates(self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)
        if allowed and not self.is_deepspeed_enabled:
            own.restore(self.optimizer, self.lr_scheduler)
        check_schedule_fits(Path(checkpoint), _peak_rates(self.lr_scheduler), wanted)


def _peak_rates(scheduler: Any) -> list[float] | None:
    """Returns a copy of a schedule's peak learning rates; None where it has none."""
    rates = getattr(getattr(scheduler, "scheduler", scheduler), "base_lrs", None)
    return None if rates is None else list(rates)


@contextmanager
def _gathering(model: Any) -> Iterator[None]:
    """While entered, a DeepSpeed engine gathers a model that is split over the processes, whatever its settings say."""
    if not hasattr(model, "zero_gather_16bit_weights_on_model_save"):
        yield
        return
    model.zero_gather_16bit_weights_on_model_save = lambda: True
    try:
        yield
    finally:
        del model.zero_gather_16bit_weights_on_model_save
