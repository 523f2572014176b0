"""A trainer whose pushes to the Hub contain a model card and no private data of this machine."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, HfApi, get_token
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..errors import SimPOError, first_line
from ..log import get_logger
from ..record.folders import REPORT
from ..record.manifest import ManifestCallback
from ..record.privacy import hub_name, private_texts, public_label
from ..report.command import report_of
from .card import write_card
from .hub import MODEL_FILES, PUSHED, stage_files

logger = get_logger(__name__)


class HubTrainer(Trainer):
    """A trainer whose pushes contain this package's model card and no private data."""

    run_record: ManifestCallback

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Override `Trainer.init_hf_repo`, whose arguments depend on the version: explain errors of the Hub.

        Raises:
            SimPOError: the repository cannot be made.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # there are many different errors for failures of the network
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            raise SimPOError(
                f"The repository {name} cannot be made on the Hub: {first_line(error)}. Set hub_model_id to a name "
                "that your token may write to, or push_to_hub: false."
            ) from error

    def create_model_card(  # type: ignore[override]
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write README.md with the training curves into the output folder.

        Args:
            model_name: the title.
            dataset_name: data sets to name in addition to the recipe's.
            tags: tags in addition to those of the method ("simpo", "trl" and "preference-optimization" for SimPO).
            kwargs: other arguments of `Trainer.create_model_card`; `language`, `license`, `finetuned_from` and
                `dataset_tags` are used.
        """
        if not self.is_world_process_zero():
            return
        metadata = {name: kwargs[name] for name in ("language", "license") if kwargs.get(name)}
        if kwargs.get("finetuned_from"):
            metadata["base_model"] = kwargs["finetuned_from"]
        # Without a push, the repository may not exist.
        repo = self.hub_model_id or (self.args.hub_model_id if self.args.push_to_hub else None)
        write_card(
            Path(str(self.args.output_dir)),
            self.run_record.so_far(),
            self.state.log_history,
            repo=repo,
            model_name=model_name,
            datasets=[*_listed(dataset_name), *_listed(kwargs.get("dataset_tags"))],
            tags=[*_listed(tags), *_listed(getattr(self.model, "model_tags", None))],
            metadata=metadata,
        )

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Override `Trainer.push_to_hub`: leave out `training_args.bin`, and remove private paths from texts."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            if private is not None:  # not an argument of init_hf_repo in every version
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        self._warn_of_local_base()
        staged = self._stage(token=token)
        upload = self._uploader(staged, commit_message, token, revision)
        return upload() if blocking else self._hub.run_as_future(upload)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model and the checkpoint in the background, as far as `hub_strategy` asks for it."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running: Any = self.push_in_progress
        busy = running is not None and not running.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.create_model_card()
        checkpoint = Path(checkpoint_folder)
        staged = self._stage(checkpoint)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            stage_files(checkpoint, staged / name, self._hidden_texts())
        message = f"Training in progress, step {self.state.global_step}"
        job = self._hub.run_as_future(self._uploader(staged, message, self.args.hub_token, None))
        job.add_done_callback(_warn_if_failed)
        if busy:
            running.jobs.append(job)
        else:
            self.push_in_progress = cast(Any, PushInProgress(cast(Any, [job])))

    @cached_property
    def _hub(self) -> HfApi:
        return HfApi()  # one for all pushes, so that pushes in the background run one after another

    def _stage(self, checkpoint: Path | None = None, token: str | None = None) -> Path:
        """Make a folder of the files to push: those of the output folder; the model's from `checkpoint` if given."""
        output_dir = Path(str(self.args.output_dir))
        if checkpoint and self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)
        # On the same disk, where links are possible. Its name starts with "_": if a run is killed, it is never pushed.
        staged = Path(tempfile.mkdtemp(prefix="_push_", dir=output_dir))
        hidden = self._hidden_texts(token)
        stage_files(output_dir, staged, hidden, only=PUSHED)
        if checkpoint:
            stage_files(checkpoint, staged, hidden, only=MODEL_FILES)
        settings: Any = getattr(self, "shared", self.args)
        if settings.push_report:
            self._stage_report(output_dir, staged, hidden)
        return staged

    def _stage_report(self, output_dir: Path, staged: Path, hidden: Mapping[str, str]) -> None:
        """Put a report without rows and paths among the files to push."""
        content = report_of([output_dir], public=True)
        for private, shown in hidden.items():
            content = content.replace(private, shown)
        (staged / REPORT).write_text(content, encoding="utf-8")

    def _uploader(
        self, staged: Path, message: str | None, token: str | None, revision: str | None
    ) -> Callable[[], CommitInfo]:
        """Returns a function that uploads the staged folder and removes it."""

        def upload() -> CommitInfo:
            try:
                return self._hub.upload_folder(
                    repo_id=str(self.hub_model_id),
                    folder_path=staged,
                    commit_message=message,
                    token=token,
                    revision=revision or self.args.hub_revision,
                )
            finally:
                shutil.rmtree(staged, ignore_errors=True)

        return upload

    def _hidden_texts(self, token: str | None = None) -> dict[str, str]:
        model: Any = self.model
        base = model.config._name_or_path
        return private_texts(self.args.output_dir, base, secrets=(token, self.args.hub_token, get_token()))

    def _warn_of_local_base(self) -> None:
        model: Any = self.model
        base = model.config._name_or_path
        if isinstance(model, PeftModel) and base and hub_name(base) is None:
            logger.warning(
                f"The adapter's base {base} is a folder of this machine; the adapter_config.json that is pushed calls "
                f"it {public_label(base)}, so users of the adapter must get the base themselves. Start from a model on "
                "the Hub, or push the base too and write its name in adapter_config.json."
            )


def _warn_if_failed(job: Future) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        logger.warning(f"A push during training failed, and the training goes on: {first_line(error)}.")


def _listed(value: str | Iterable[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
