"""`SimPOConfig`: the one list of training knobs, each explained once, checked before anything is loaded."""

import math
import os
import warnings
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from ..errors import SimPOError
from ..knobs import knob, knob_problems
from ..log import get_logger
from ..loss.objective import Objective, settled_loss
from ..loss.settings import LossSettings, loss_problems, loss_warnings
from ..model.settings import ModelSettings
from ..tokens.settings import RowSettings, row_problems, settled_rows
from .arguments import checkpointing_problems, refuse_unknown_settings, settle_types
from .bars import bars_can_be_seen
from .best_metric import direction_problems, greater_is_better
from .processes import check_one_accelerator, check_world_size
from .rate import FULL_RATE, adapter_rate, has_adapter
from .sharding import parallelism_problem

logger = get_logger(__name__)

# How accelerate tells a launched process the precision that its configuration file names.
_PRECISION = "ACCELERATE_MIXED_PRECISION"
# Fields whose value, where it is left open, follows from other fields.
_FOLLOWING = (
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "bf16",
        "do_eval",
        "eval_steps",
        "metric_for_best_model",
        "greater_is_better",
    ),
    *("torch_compile", "torch_compile_backend", "dataloader_pin_memory"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # the older names of those that follow
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
)


# Rows of a micro-batch where nothing else asks for fewer.
_MICRO_BATCH = 8


def _is_count(value: int) -> bool:
    return value >= 1


# The fields stand in the order of the bases from the last to the first: loss, rows, model, then those below.
@dataclass(repr=False)
class SimPOConfig(ModelSettings, RowSettings, LossSettings, TrainingArguments):
    """Arguments of :class:`~simpo_trainer.SimPOTrainer`: those of its bases, and the ones below.

    Batch sizes count rows: pairs, or prompts with their ranked answers. Defaults that differ from the parent's are the
    SimPO paper's: learning rate 5e-7, cosine schedule with 10 % warm-up, one epoch. Three more follow the machine:
    `bf16` is on where an accelerator supports it, `use_cpu` is set where there is no accelerator, the progress bar is
    off where nobody sees it. Every value is checked on construction; all problems are reported at once as a
    :class:`~simpo_trainer.errors.SimPOError`.

    A field that is left open stays so, so that `dataclasses.replace(args, loss_type="ipo")` gives what a new
    `SimPOConfig(..., loss_type="ipo")` would. The values that are used are in :meth:`settled`, and so in
    `trainer.args`.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    dataset_num_proc: int | None = knob(
        None,
        "Processes that tokenize the data; unset means one.",
        lambda x: x >= 0,
        "it must be a number of processes. Set dataset_num_proc: 4, or leave it out.",
        changes_result=False,
    )
    global_batch_size: int | None = knob(
        None,
        "Pairs (or prompts with ranked answers) of one optimiser step over all processes (the paper's is 128 pairs); "
        "gradient_accumulation_steps follows from it, the batch per device and the number of processes. Where both are "
        "given, the accumulation counts and a difference is said at the start.",
        _is_count,
        "it must be 1 or more. Set global_batch_size: 128, or leave it out.",
        changes_result=False,  # the pairs of a step are compared themselves
    )
    allow_changes: bool = knob(
        False,
        "Go on from a checkpoint with settings that change the result and are not those that it was trained with. They "
        "count from its step on, and the record says so. Without it such a run is refused.",
        changes_result=False,
    )
    rescue_dir: str | None = knob(
        None,
        "A folder on another disk, for the trained model if output_dir has no room for it at the end of the training; "
        "unset means to wait for room.",
        changes_result=False,
    )
    sample_prompts: int | str = knob(
        0,
        "Prompts of the held-out pairs, or of the training pairs, that the model answers greedily before the start "
        "and at each evaluation, for samples.jsonl and the health monitor; 0 means none. 8 show a collapse. Or a file "
        "of JSON Lines with prompts of your own.",
        lambda x: isinstance(x, str) or x >= 0,
        "it must be a number of prompts, or a file. Set sample_prompts: 8, or leave it out.",
        changes_result=False,
    )
    push_report: bool = knob(
        False,
        "Push report.html to the Hub too, without answers of the model, rows and paths.",
        changes_result=False,
    )
    stop_on_collapse: bool = knob(
        False,
        "Stop the run, with a checkpoint, where the health monitor sees that the model is being ruined: chosen answers "
        "far below their start, or a loss well above it.",
        changes_result=False,
    )

    # Parent fields with another default.
    per_device_train_batch_size: int | None = knob(  # type: ignore[assignment]
        None,
        "Pairs (or prompts with ranked answers) of a micro-batch on each device; unset means 8, or fewer where "
        "global_batch_size would not be a multiple of that.",
        _is_count,
        "it must be 1 or more. Set per_device_train_batch_size: 1, or leave it out.",
        changes_result=False,
    )
    gradient_accumulation_steps: int | None = knob(  # type: ignore[assignment]
        None,
        "Micro-batches of one optimiser step; unset means what global_batch_size asks for, and 1 without it.",
        _is_count,
        "it must be 1 or more. Set gradient_accumulation_steps: 1, or leave it out.",
        changes_result=False,
    )
    num_train_epochs: float = knob(1.0, "Passes over the training pairs.")
    learning_rate: float | None = knob(  # type: ignore[assignment]
        None,
        "Peak learning rate. Unset means 5e-7 for all weights and ten times that for an adapter. The paper, which "
        "trains all weights, uses 3e-7 to 1e-6; 1e-5 ruins a 7B model then.",
        lambda x: 0 <= x < math.inf,
        "it must be a number, 0 or above. Correct it, or leave it out.",
    )
    lr_scheduler_type: SchedulerType | str = knob(
        "cosine",
        "Learning-rate schedule, by its name in transformers: cosine, linear, constant_with_warmup, ...",
    )
    warmup_steps: float = knob(
        0.1,
        "Warm-up: a number of optimiser steps, or below 1 a share of them.",
        lambda x: 0 <= x < math.inf,
        "it must be a number, 0 or above. Correct it, or leave it out.",
    )
    logging_steps: float = knob(
        10, "Optimiser steps between two log lines, or below 1 a share of all steps.", changes_result=False
    )
    bf16: bool | None = knob(  # type: ignore[assignment]
        None, "bfloat16 autocast over float32 weights; unset means on where the accelerator supports it."
    )
    remove_unused_columns: bool = knob(
        False, "Must stay false: the trainer makes its batches from its own columns.", changes_result=False
    )
    logging_nan_inf_filter: bool = knob(
        False, "Must stay false: a non-finite loss stops the run, it is not hidden.", changes_result=False
    )
    ddp_find_unused_parameters: bool | None = knob(
        None,
        "Search for parameters without a gradient each step; unset means false, which saves a graph walk.",
        changes_result=False,
    )

    def __new__(cls, *args: Any, **given: Any) -> "SimPOConfig":
        """Make the object, once every name that is given is one of a setting."""
        refuse_unknown_settings(cls, given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if problems := settle_types(self):
            raise SimPOError("\n".join(problems))
        if not torch.accelerator.is_available():
            # Without this, processes started by a launcher on a machine without an accelerator stay unconnected.
            self.use_cpu = True
        if self.disable_tqdm is None:
            # In a log file a progress bar is noise; the lines of the log say where the run is.
            self.disable_tqdm = not bars_can_be_seen()
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        given = {name: getattr(self, name) for name in _FOLLOWING if hasattr(self, name)}
        # The launcher's promise, checked below: the parent class counts processes only after it has used these
        # settings.
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.per_device_train_batch_size = _micro_batch(self, world_size)
        accumulation, problems = _accumulation(self, world_size)
        problems = [*_problems(self), *problems]
        if problems:
            raise SimPOError("\n".join(problems))
        if self.enable_jit_checkpoint:
            # Its callback takes the signal for itself, and a run that it stopped would count as finished.
            self.enable_jit_checkpoint = False
            logger.warning("enable_jit_checkpoint does nothing here: SIGTERM always ends a run with a checkpoint.")
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        self.gradient_accumulation_steps = accumulation
        self.learning_rate = FULL_RATE if self.learning_rate is None else self.learning_rate
        self.bf16 = _uses_bf16(self)
        with warnings.catch_warnings():
            # The newer name is unknown to the oldest version of transformers that this package works with.
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()
        # What a launcher's file says would otherwise hold beside a bf16: false.
        self.mixed_precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"
        self._following = {name: (value, getattr(self, name)) for name, value in given.items()}
        vars(self).update(given)
        check_world_size(self.world_size)
        check_one_accelerator(self.n_gpu)
        for warning in [*loss_warnings(self), *_warnings(self)]:
            logger.warning(warning)
        if self.max_prompt_length is None and self.max_length != RowSettings.max_length:
            logger.info(
                f"max_prompt_length is {self.prompt_limit}: unset, it follows from max_length {self.max_length}."
            )

    def settled(self) -> "SimPOConfig":
        """Returns a copy with the values that are used, for fields that were left open."""
        copied = copy(self)
        for name, (given, used) in self._following.items():
            if getattr(self, name) == given:  # not set by hand since
                setattr(copied, name, used)
        vars(copied).update({**settled_loss(self), **settled_rows(self)})
        return copied

    def settled_for(self, model: nn.Module) -> "SimPOConfig":
        """Returns :meth:`settled`, with the learning rate of an adapter where none is given and `model` has one."""
        settled = self.settled()
        if self.learning_rate is None and has_adapter(model):
            settled.learning_rate, told = adapter_rate(FULL_RATE)
            logger.info(told)
        return settled

    @property
    def train_batch_size(self) -> int:
        """Returns the rows of a micro-batch of this process."""
        return self.per_device_train_batch_size or self._following["per_device_train_batch_size"][1]

    @property
    def objective(self) -> Objective:
        """The preference loss that these settings ask for."""
        return Objective.of(self)

    # The parent's, which hides tokens; the dataclasses among the bases bring their own.
    __repr__ = TrainingArguments.__repr__

    def __getstate__(self) -> dict[str, Any]:
        """Without the Hub's token: the trainer pickles its arguments into every folder that it saves."""
        return {**self.__dict__, "hub_token": None}


def _uses_bf16(config: SimPOConfig) -> bool:
    if config.bf16 is not None:
        return config.bf16
    launched = os.environ.get(_PRECISION) == "bf16"
    return not config.fp16 and (launched or (not config.use_cpu and is_torch_bf16_gpu_available()))


def _problems(config: SimPOConfig) -> list[str]:
    """A sentence for each setting that cannot be used."""
    return [
        *loss_problems(config),
        *row_problems(config),
        *knob_problems(ModelSettings, config),
        *knob_problems(SimPOConfig, config),
        *_number_problems(config),
        *_incomplete(config),
        *direction_problems(config.metric_for_best_model, config.greater_is_better),
        *_parent_problems(config),
        *checkpointing_problems(config),
    ]


def _number_problems(config: SimPOConfig) -> list[str]:
    """A sentence for each number of the parent's with which nothing, or nonsense, would be trained."""
    problems = []
    if not _is_count(config.per_device_eval_batch_size):
        problems.append(
            f"per_device_eval_batch_size is {config.per_device_eval_batch_size}; it must be 1 or more. Set "
            "per_device_eval_batch_size: 1, or leave it out."
        )
    if config.eval_accumulation_steps is not None and config.eval_accumulation_steps < 1:
        problems.append(
            f"eval_accumulation_steps is {config.eval_accumulation_steps}; it must be 1 or more. Correct it, or leave "
            "it out."
        )
    if config.dataloader_num_workers < 0:
        problems.append(f"dataloader_num_workers is {config.dataloader_num_workers}; it must be 0 or more. Correct it.")
    for name in ("weight_decay", "max_grad_norm"):
        value = getattr(config, name)
        if value is not None and (not math.isfinite(value) or (value < 0 and name != "max_grad_norm")):
            problems.append(f"{name} is {value}; it must be a number, 0 or above. Correct it, or leave it out.")
    if config.max_steps == 0 or (config.max_steps < 0 and not 0 < config.num_train_epochs < math.inf):
        problems.append(
            f"max_steps is {config.max_steps} and num_train_epochs {config.num_train_epochs}; nothing would be "
            "trained. Set num_train_epochs: 1, or max_steps to a number of optimiser steps."
        )
    return problems


def _incomplete(config: SimPOConfig) -> list[str]:
    """A sentence for each setting of the parent's that needs another, which is missing."""
    problems = []
    has_metric = config.load_best_model_at_end or config.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    if config.save_strategy == "best" and config.metric_for_best_model is None and not has_metric:
        problems.append(
            "save_strategy is best, and nothing says by which metric. Set metric_for_best_model: eval_loss, or another."
        )
    if isinstance(config.sample_prompts, str) and not Path(config.sample_prompts).expanduser().is_file():
        problems.append(
            f"sample_prompts is {config.sample_prompts}, which is no file here. Give a number of prompts, or a file of "
            'JSON Lines: {"prompt": "..."}.'
        )
    if config.dataloader_persistent_workers and config.dataloader_num_workers == 0:
        problems.append(
            "dataloader_persistent_workers is true, but there are no workers. Set dataloader_num_workers: 2, or leave "
            "it out."
        )
    return problems


def _micro_batch(config: SimPOConfig, world_size: int) -> int:
    """Returns the rows of a micro-batch: given, or at most 8 that divide the share of each process."""
    if config.per_device_train_batch_size is not None:
        return config.per_device_train_batch_size
    wanted = config.global_batch_size
    if config.gradient_accumulation_steps is not None or wanted is None or wanted < world_size:
        return _MICRO_BATCH
    share = wanted // world_size
    return max(size for size in range(1, _MICRO_BATCH + 1) if share % size == 0)


def _accumulation(config: SimPOConfig, world_size: int) -> tuple[int, list[str]]:
    """Micro-batches of an optimiser step, given or derived from the global batch, and why that cannot be had."""
    micro, wanted = config.per_device_train_batch_size or _MICRO_BATCH, config.global_batch_size
    if config.gradient_accumulation_steps is not None:
        return config.gradient_accumulation_steps, []
    if wanted is None or micro < 1 or wanted < 1:  # the latter two have checks of their own
        return 1, []
    problems = [_indivisible(wanted, micro, world_size)] if wanted % (micro * world_size) else []
    return max(1, wanted // (micro * world_size)), problems


def _indivisible(wanted: int, micro: int, world_size: int) -> str:
    """A global batch that cannot be had, and the nearest settings that can."""
    together = micro * world_size
    below, above = wanted // together * together, (wanted // together + 1) * together
    near = " or ".join(str(size) for size in (below, above) if size > 0)
    message = (
        f"global_batch_size is {wanted}, which is no multiple of {together} ({micro} pairs per device x {world_size} "
        f"process{'es' if world_size > 1 else ''}). Set global_batch_size: {near}"
    )
    if wanted % world_size == 0:
        share = wanted // world_size
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        lower, higher = [size for size in fitting if size < micro], [size for size in fitting if size > micro]
        sizes = " or ".join(str(size) for size in [*lower[-1:], *higher[:1]])
        message += f"; or keep it and set per_device_train_batch_size: {sizes}"
    else:
        counts = [count for count in range(1, world_size) if wanted % (micro * count) == 0]
        message += f"; or keep it and use {counts[-1]} processes" if counts else ""
    return message + "."


def _parent_problems(config: SimPOConfig) -> list[str]:
    """Settings of `TrainingArguments` that would silently do nothing, or something else, in this trainer."""
    problems = []
    if config.remove_unused_columns:
        problems.append("remove_unused_columns is true; the trainer needs its own columns. Leave it out.")
    if config.logging_nan_inf_filter:
        problems.append("logging_nan_inf_filter is true; it would hide a non-finite loss. Leave it out.")
    if config.include_num_input_tokens_seen not in ("no", False):
        problems.append(
            f"include_num_input_tokens_seen is {config.include_num_input_tokens_seen!r}; the trainer counts the tokens "
            "of every pair itself and logs num_tokens_seen. Leave it out."
        )
    if config.label_smoothing_factor:
        problems.append(
            f"label_smoothing_factor is {config.label_smoothing_factor}; it smooths token labels, which SimPO has not. "
            "Use label_smoothing, the share of wrongly labelled pairs."
        )
    if config.auto_find_batch_size:
        problems.append(
            "auto_find_batch_size is true; it would change the global batch and start over on trained weights. Leave "
            "it out, and lower per_device_train_batch_size until it fits: with global_batch_size the accumulation "
            "follows, and the optimiser steps stay the same."
        )
    if config.use_liger_kernel:
        problems.append(
            "use_liger_kernel is true; it replaces the model's forward, through which answers are scored. "
            "Set model_init_kwargs: {use_kernels: true} instead; the head is computed in tiles anyway."
        )
    if config.neftune_noise_alpha:
        problems.append(
            f"neftune_noise_alpha is {config.neftune_noise_alpha}; the size of its noise follows from the width of a "
            "row, so it would differ with batch_layout and per_device_train_batch_size, and the answers of a pair "
            "would be compared under unlike noise. Leave it out."
        )
    if config.train_sampling_strategy != "random":
        problems.append(
            f"train_sampling_strategy is {config.train_sampling_strategy!r}; pairs are ordered by the trainer's own "
            "sampler, which gives the same order on any number of processes. Leave it out."
        )
    if split := parallelism_problem(config.parallelism_config):
        problems.append(split)
    return problems


def _warnings(config: SimPOConfig) -> list[str]:
    warnings = []
    if config.margin_scale and not config.objective.reads_margins:
        warnings.append(
            f"margin_scale={config.margin_scale} has no effect on {config.losses_in_words}, which knows no target "
            "margin."
        )
    if config.fp16:
        warnings.append("fp16 overflows easily in preference training; use bf16 where the hardware has it.")
    return warnings
