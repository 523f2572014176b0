"""`SimPOConfig`: the one list of training knobs, each explained once, checked before anything is loaded."""

import math
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from ..data.ranking import PairChoice
from ..errors import SimPOError
from ..log import get_logger
from ..loss.losses import DEFAULTS, LOSSES
from ..loss.objective import Objective, loss_problems, loss_warnings
from .processes import check_one_accelerator, check_world_size

logger = get_logger(__name__)

# How accelerate tells a launched process the precision that its configuration file names.
_PRECISION = "ACCELERATE_MIXED_PRECISION"


def _knob(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SimPOConfig(TrainingArguments):
    """Arguments of :class:`SimPOTrainer`: those of `transformers.TrainingArguments` and the ones below.

    Batch sizes count rows: pairs, or prompts with their ranked answers. Defaults that differ from the parent's are the SimPO paper's: learning rate 5e-7, cosine
    schedule with 10 % warm-up, one epoch. Three more follow the machine: `bf16` is on where an accelerator supports it,
    `use_cpu` is set where there is no accelerator, the progress bar is off where nobody sees it. Every value is checked
    on construction; all problems are reported at once as a :class:`~simpo_trainer.errors.SimPOError`.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    loss_type: str | list[str] = _knob(
        "sigmoid",
        f"Preference loss: {', '.join(LOSSES)}; or a list of them, whose weighted sum is trained. `simpo losses` shows what "
        "each is and uses.",
    )
    loss_weights: list[float] | None = _knob(None, "Weight of each loss in a list, >= 0. Unset means 1 for each.")
    beta: float | None = _knob(
        None,
        "Scale of the reward, > 0. Unset means the loss's own: 2.0 for SimPO, whose paper uses 2.0 to 10; below 1 is "
        "DPO-sized and almost surely a mistake there.",
    )
    gamma_beta_ratio: float | None = _knob(
        None,
        "Target margin gamma/beta in nats per token, >= 0. Unset means the loss's own: 0.5 for SimPO, whose paper uses 0.1 "
        "to 0.8. Other trainers take gamma itself: divide it by beta.",
    )
    label_smoothing: float | None = _knob(
        None,
        "Share of pairs taken to be labelled the wrong way round, in [0, 0.5]. Unset means the loss's own: 0.1 for robust, "
        "else 0.",
    )
    alpha: float | None = _knob(None, "Shape of AlphaPO's reward; 0 is SimPO's. Unset means 0.25.")
    slic_delta: float | None = _knob(None, "Margin of the slic loss in nats, >= 0. Unset means 1.")
    discopop_tau: float | None = _knob(None, "Temperature of the discopop loss, between 0 and 1. Unset means 0.05.")
    squared_target: float | None = _knob(
        None, "Reward margin that the squared loss aims at. Unset means beta * gamma_beta_ratio."
    )
    average_log_prob: bool = _knob(
        True,
        "Compare answers by log-probability per token, as SimPO does; false compares sums over tokens. Losses that are "
        "defined by one of the two keep to it.",
    )
    sft_weight: float | None = _knob(
        None,
        "Weight of the negative log-likelihood of chosen answers added to the loss, >= 0. Unset means the loss's own: 1 for "
        "slic, cpo, orpo and rrhf, else 0.",
    )
    sft_reduction: Literal["sequence", "token", "sum"] = _knob(
        "sequence",
        "Mean of the SFT term: 'sequence' over pairs of the per-token average of each chosen answer, 'token' over all "
        "chosen tokens of the global batch (the official code's, there per micro-batch), 'sum' over pairs of the whole "
        "answer's.",
    )
    pairs: PairChoice = _knob(
        "all",
        "Which pairs of a prompt's ranked answers are trained: 'all' is every two of different rank, 'best_worst' the best "
        "against the worst, 'adjacent' each against the next lower rank; of answers that share a rank, each. Equal ranks "
        "make no pair, and answers in no pair are not run.",
    )
    margin_scale: float = _knob(
        0.0,
        "What a point of score (or a rank) between two ranked answers adds to the target margin of their pair, >= 0: nats "
        "per token, or nats without average_log_prob.",
    )
    max_length: int = _knob(2048, "Longest prompt + answer, in tokens.")
    max_prompt_length: int = _knob(
        1800, "Length, in tokens, to which the prompt of an overlong row is cut. Below max_length."
    )
    truncation_mode: Literal["keep_end", "keep_start"] = _knob(
        "keep_end",
        "Which end of such a prompt is kept: 'keep_end' or 'keep_start'. A leading BOS and the generation header "
        "always stay.",
    )
    overlong: Literal["truncate", "drop", "error"] = _knob(
        "truncate",
        "What to do where prompt + longest answer exceed max_length: 'truncate' cuts the prompt to max_prompt_length "
        "and then, if still needed, all answers to max_length - max_prompt_length (the official rule); 'drop' leaves the "
        "row out; 'error' stops.",
    )
    system_messages: Literal["keep", "merge", "drop"] = _knob(
        "keep",
        "System messages of the rows: 'keep' hands them to the chat template, which may refuse them; 'merge' puts each "
        "in front of the user message that follows, two line breaks between; 'drop' leaves them out.",
    )
    auto_insert_empty_system_msg: bool = _knob(
        False,
        "Put an empty system message in front of conversations without one where the text of the chat template "
        "mentions 'system' or '<|im_start|>', as alignment-handbook does.",
    )
    batch_layout: Literal["auto", "padded", "shared_prefix", "packed"] = _knob(
        "auto",
        "How prompts and answers are laid out in rows: 'shared_prefix' runs a prompt once for its answers, 'packed' puts "
        "all prompts of a micro-batch in one row, 'padded' gives each answer a row. All give the same loss and gradient; "
        "'auto' takes the fastest that is exact for the model.",
    )
    disable_dropout: bool = _knob(
        True,
        "Set every dropout of the model (and of LoRA) to 0, so that a loss is a function of weights and data. Where layers "
        "read it from the configuration, the saved configuration says 0 too.",
    )
    dataset_num_proc: int | None = _knob(None, "Processes that tokenize the data; unset means one.")
    model_init_kwargs: dict[str, Any] | str | None = _knob(
        None, "Keyword arguments of `AutoModelForCausalLM.from_pretrained`, used when the model is given by name."
    )

    global_batch_size: int | None = _knob(
        None,
        "Pairs (or prompts with ranked answers) of one optimiser step over all processes (the paper's is 128 pairs); "
        "gradient_accumulation_steps follows from it, the batch per device and the number of processes. Where both are given, the accumulation counts and a "
        "difference is said at the start.",
    )

    # Parent fields with another default.
    gradient_accumulation_steps: int | None = _knob(  # type: ignore[assignment]
        None, "Micro-batches of one optimiser step; unset means what global_batch_size asks for, and 1 without it."
    )
    num_train_epochs: float = _knob(1.0, "Passes over the training pairs.")
    learning_rate: float = _knob(5e-7, "Peak learning rate. The paper uses 3e-7 to 1e-6; 1e-5 ruins a 7B model.")
    lr_scheduler_type: str = _knob("cosine", "Learning-rate schedule.")
    warmup_steps: float = _knob(0.1, "Warm-up: a number of optimiser steps, or below 1 a share of them.")
    logging_steps: float = _knob(10, "Optimiser steps between two log lines, or below 1 a share of all steps.")
    bf16: bool | None = _knob(  # type: ignore[assignment]
        None, "bfloat16 autocast over float32 weights; unset means on where the accelerator supports it."
    )
    remove_unused_columns: bool = _knob(False, "Must stay false: the trainer makes its batches from its own columns.")
    logging_nan_inf_filter: bool = _knob(False, "Must stay false: a non-finite loss stops the run, it is not hidden.")
    ddp_find_unused_parameters: bool | None = _knob(
        None, "Search for parameters without a gradient each step; unset means false, which saves a graph walk."
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # Without this, processes started by a launcher on a machine without an accelerator stay unconnected.
            self.use_cpu = True
        if self.disable_tqdm is None:
            # In a log file a progress bar is noise; the lines of the log say where the run is.
            self.disable_tqdm = not sys.stderr.isatty()
        if self.bf16 is None:
            launched = os.environ.get(_PRECISION) == "bf16"
            self.bf16 = launched or (not self.use_cpu and not self.fp16 and is_torch_bf16_gpu_available())
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        problems = [
            *loss_problems(self),
            *_length_problems(self),
            *_number_problems(self),
            *_conversation_problems(self),
            *_parent_problems(self),
        ]
        # The launcher's promise, checked below: the parent class counts processes only after it has used these settings.
        problems += _accumulation_problems(self, int(os.environ.get("WORLD_SIZE", "1")))
        if problems:
            raise SimPOError("\n".join(problems))
        with warnings.catch_warnings():
            # The newer name is unknown to the oldest version of transformers that this package works with.
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()
        warnings_of_loss = loss_warnings(self)
        if self.enable_jit_checkpoint:
            # Its callback takes the signal for itself, and a run that it stopped is told to have finished.
            self.enable_jit_checkpoint = False
            logger.warning("enable_jit_checkpoint does nothing here: SIGTERM always ends a run with a checkpoint.")
        self._settle_loss()
        # What a launcher's file says would otherwise hold beside a bf16: false.
        self.mixed_precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"
        check_world_size(self.world_size)
        check_one_accelerator(self.n_gpu)
        for warning in [*warnings_of_loss, *_warnings(self)]:
            logger.warning(warning)

    def _settle_loss(self) -> None:
        """Set what was left open to what the losses use, where that is one value."""
        objective = self.objective
        self.sft_weight = objective.sft_weight
        for name in DEFAULTS:
            if getattr(self, name) is None:
                setattr(self, name, objective.shared(name))

    @property
    def objective(self) -> Objective:
        """The preference loss that these settings ask for."""
        return Objective.of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Without the Hub's token: the trainer pickles its arguments into every folder that it saves."""
        return {**self.__dict__, "hub_token": None}


def _length_problems(config: SimPOConfig) -> list[str]:
    problems = []
    if config.max_length < 2:
        problems.append(f"max_length is {config.max_length}; a prompt and an answer need at least 2 tokens.")
    if not 1 <= config.max_prompt_length < config.max_length:
        problems.append(
            f"max_prompt_length is {config.max_prompt_length} and max_length {config.max_length}; max_prompt_length "
            "must be at least 1 and below max_length, or an overlong prompt leaves no room for an answer. "
            "Lower max_prompt_length or raise max_length."
        )
    if config.overlong not in ("truncate", "drop", "error"):
        problems.append(f"overlong is {config.overlong!r}; it must be 'truncate', 'drop' or 'error'.")
    if config.truncation_mode not in ("keep_end", "keep_start"):
        problems.append(f"truncation_mode is {config.truncation_mode!r}; it must be 'keep_end' or 'keep_start'.")
    return problems


def _conversation_problems(config: SimPOConfig) -> list[str]:
    problems = []
    if config.system_messages not in ("keep", "merge", "drop"):
        problems.append(f"system_messages is {config.system_messages!r}; it must be 'keep', 'merge' or 'drop'.")
    elif config.auto_insert_empty_system_msg and config.system_messages != "keep":
        problems.append(
            f"auto_insert_empty_system_msg is true and system_messages is {config.system_messages!r}: one inserts what "
            "the other removes. Leave out one of the two."
        )
    if config.batch_layout not in ("auto", "padded", "shared_prefix", "packed"):
        problems.append(
            f"batch_layout is {config.batch_layout!r}; it must be 'auto', 'padded', 'shared_prefix' or 'packed'."
        )
    if config.pairs not in get_args(PairChoice):
        problems.append(f"pairs is {config.pairs!r}; it must be 'all', 'best_worst' or 'adjacent'.")
    return problems


# Counts of at least 1.
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "global_batch_size",
)


def _number_problems(config: SimPOConfig) -> list[str]:
    """Numbers with which nothing, or nonsense, would be trained."""
    problems = []
    for name in _COUNTS:
        value = getattr(config, name)
        if value is not None and value < 1:
            problems.append(f"{name} is {value}; it must be 1 or more. Set {name}: 1, or leave it out.")
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"):
        value = getattr(config, name)
        if value is not None and (not math.isfinite(value) or (value < 0 and name != "max_grad_norm")):
            problems.append(f"{name} is {value}; it must be a number, 0 or above. Correct it, or leave it out.")
    if config.max_steps == 0 or (config.max_steps < 0 and not 0 < config.num_train_epochs < math.inf):
        problems.append(
            f"max_steps is {config.max_steps} and num_train_epochs {config.num_train_epochs}; nothing would be trained. Set "
            "num_train_epochs: 1, or max_steps to a number of optimiser steps."
        )
    return problems


def _accumulation_problems(config: SimPOConfig, world_size: int) -> list[str]:
    """Set gradient_accumulation_steps where it is open; what is wrong if it cannot be set."""
    micro, wanted = config.per_device_train_batch_size, config.global_batch_size
    if config.gradient_accumulation_steps is not None or wanted is None:
        if config.gradient_accumulation_steps is None:
            config.gradient_accumulation_steps = 1
        return []
    if micro < 1 or wanted < 1:  # told above
        return []
    config.gradient_accumulation_steps = max(1, wanted // (micro * world_size))
    if wanted % (micro * world_size) == 0:
        return []
    return [_indivisible(wanted, micro, world_size)]


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
            f"include_num_input_tokens_seen is {config.include_num_input_tokens_seen!r}; the trainer counts the tokens of "
            "every pair itself and logs num_tokens_seen. Leave it out."
        )
    if config.label_smoothing_factor:
        problems.append(
            f"label_smoothing_factor is {config.label_smoothing_factor}; it smooths token labels, which SimPO has not. "
            "Use label_smoothing, the share of wrongly labelled pairs."
        )
    if config.use_liger_kernel:
        problems.append(
            "use_liger_kernel is true; it replaces the model's forward, through which answers are scored. "
            "Set model_init_kwargs: {use_kernels: true} instead; the head is computed in tiles anyway."
        )
    if config.train_sampling_strategy != "random":
        problems.append(
            f"train_sampling_strategy is {config.train_sampling_strategy!r}; pairs are ordered by the trainer's own "
            "sampler, which gives the same order on any number of processes. Leave it out."
        )
    if config.parallelism_config is not None:
        problems.append(
            "parallelism_config is set; tensor, context and sequence parallelism split the tokens of an answer between "
            "processes, and its average log-probability would be computed over a part. Use DDP, FSDP2 or ZeRO."
        )
    return problems


def _warnings(config: SimPOConfig) -> list[str]:
    warnings = []
    if config.fp16:
        warnings.append("fp16 overflows easily in preference training; use bf16 where the hardware has it.")
    return warnings
