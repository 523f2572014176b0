"""The groups of keys in `simpo train --help`, and words that the classes of the settings do not hold.

A setting of this package has its help in its `knob()`. Here stand the texts of fields of transformers and trl, and
short words for defaults that follow from other keys.
"""

# The keys under the purposes for which people look for them, in the order in which they do.
GROUPS: dict[str, list[str]] = {
    "Model and output": [
        *("model_name_or_path", "output_dir", "method", "model_revision", "tokenizer_name_or_path", "dtype"),
        *("attn_implementation", "model_init_kwargs"),
    ],
    "Data": [
        *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "test_split_size"),
        *("eval_dataset_name", "columns", "dataset_format", "chat_template", "system_messages"),
        *("auto_insert_empty_system_msg", "pairs", "dataset_mixer", "dataset_splits", "dataset_configs", "datasets"),
        *("streaming", "on_bad_row", "dataset_num_proc"),
    ],
    "Batch and length": [
        *("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
        *("max_prompt_length", "overlong", "truncation_mode"),
    ],
    "Loss": [
        *("loss_type", "beta", "gamma_beta_ratio", "sft_weight", "sft_reduction", "label_smoothing", "margin_scale"),
        *("average_log_prob", "loss_weights", "alpha", "slic_delta", "discopop_tau", "squared_target"),
    ],
    "Optimisation": [
        *("learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("optim", "optim_args", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("disable_dropout", "seed", "data_seed"),
    ],
    "Adapter and quantisation": [
        *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
        *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit"),
        *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
    ],
    "Evaluation": [
        *("eval_strategy", "eval_steps", "eval_on_start", "eval_delay", "per_device_eval_batch_size"),
        *("sample_prompts", "stop_on_collapse"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ],
    "Saving and resuming": [
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "resume_from_checkpoint"),
        *("allow_changes", "rescue_dir"),
    ],
    "Logging and reporting": [
        *("logging_steps", "logging_strategy", "report_to", "run_name", "disable_tqdm", "logging_nan_inf_filter"),
    ],
    "Hub": [
        *(
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hub_private_repo",
            "hub_revision",
            "hub_token",
            "push_report",
        ),
    ],
    "Answers": [
        *("generate", "annotate", "iterate"),
    ],
    "Speed and memory": [
        *("bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "batch_layout"),
        *("dataloader_num_workers", "torch_compile", "ddp_find_unused_parameters", "remove_unused_columns"),
    ],
}

# Keys without a default that are not simply unset: what holds instead. {} is the value that a run would use.
DEFAULTS: dict[str, str] = {
    "model_name_or_path": "required",
    "output_dir": "required",
    "tokenizer_name_or_path": "default: the model's",
    "dtype": "default: float32; of a frozen base, bfloat16 under bf16",
    "attn_implementation": "default: the choice of transformers, mostly sdpa",
    "dataset_name": "required, or dataset_mixer or datasets",
    "dataset_test_split": "default: test, where the data has it",
    "columns": "default: the names of the fields",
    "dataset_format": "default: what the columns look like",
    "chat_template": "default: the tokenizer's",
    "dataset_splits": "default: train, and test where there is one",
    "dataset_num_proc": "default: 1",
    "global_batch_size": "default: what the next two give",
    "per_device_train_batch_size": "default: {}, or fewer for global_batch_size",
    "gradient_accumulation_steps": "default: {}, or what global_batch_size asks for",
    "max_prompt_length": "default: {}, which follows from max_length",
    "beta": "default: {} for sigmoid; other losses have their own",
    "gamma_beta_ratio": "default: {} for sigmoid; other losses have their own",
    "sft_weight": "default: {} for sigmoid; other losses have their own",
    "label_smoothing": "default: {} for sigmoid; other losses have their own",
    "loss_weights": "default: 1 for each",
    "squared_target": "default: beta x gamma_beta_ratio",
    "data_seed": "default: seed",
    "learning_rate": "default: {} for all weights, ten times that for an adapter",
    "lora_dropout": "default: {}, which follows from disable_dropout",
    "lora_target_modules": "default: {}",
    "bnb_4bit_quant_storage": "default: uint8",
    "eval_steps": "default: logging_steps",
    "metric_for_best_model": "default: eval_loss, with load_best_model_at_end",
    "greater_is_better": "default: follows from the metric",
    "save_total_limit": "default: all are kept",
    "resume_from_checkpoint": "default: auto",
    "rescue_dir": "default: wait until there is room",
    "run_name": "default: the reporter's choice",
    "disable_tqdm": "default: true where nobody sees the bar",
    "hub_model_id": "default: the name of output_dir",
    "hub_private_repo": "default: public, unless the organisation's rule is another",
    "hub_revision": "default: the main branch",
    "hub_token": "default: HF_TOKEN, or that of `hf auth login`",
    "bf16": "default: true where the accelerator supports it",
    "gradient_checkpointing": "default: false",
    "ddp_find_unused_parameters": "default: false",
}

# The help of fields of `TrainingArguments` and of trl.
MEANINGS: dict[str, str] = {
    "output_dir": "The folder that checkpoints, the trained model and the record of the run go to.",
    "max_steps": "Optimiser steps of the run, in place of num_train_epochs; -1 means that num_train_epochs counts.",
    "lr_scheduler_kwargs": "Arguments of the schedule, such as {min_lr: 1e-8} for cosine_with_min_lr.",
    "optim": "Optimiser, by its name in transformers: adamw_torch_fused, adamw_torch, adamw_8bit, paged_adamw_8bit, "
    "adafactor, ...",
    "optim_args": "Arguments of the optimiser, as text: 'name=value,name=value'.",
    "weight_decay": "Weight decay of the optimiser; biases and norms have none.",
    "max_grad_norm": "Largest norm of the gradient of a step; a longer one is shortened to it. 0 means no limit.",
    "adam_beta1": "Decay of Adam's mean of gradients.",
    "adam_beta2": "Decay of Adam's mean of squared gradients.",
    "adam_epsilon": "Added to Adam's divisor.",
    "seed": "Seed of the order of pairs, of a carved test split and of a new adapter's first weights.",
    "data_seed": "Seed of the order of pairs alone.",
    "lora_task_type": "Must stay CAUSAL_LM: a language model is trained.",
    "eval_strategy": "When to evaluate during training: no, steps (every eval_steps) or epoch. The trained model is "
    "evaluated in any case where there are evaluation pairs.",
    "eval_steps": "Optimiser steps between two evaluations, or below 1 a share of all steps.",
    "eval_on_start": "Evaluate before the first step too.",
    "eval_delay": "Steps (or epochs, as eval_strategy counts) before the first evaluation.",
    "per_device_eval_batch_size": "Pairs (or prompts with ranked answers) of a micro-batch of an evaluation, on each "
    "device.",
    "load_best_model_at_end": "End with the best checkpoint in place of the last. Evaluations and checkpoints must "
    "come at the same steps.",
    "metric_for_best_model": "Metric that tells the best checkpoint: eval_loss, eval_rewards/accuracies, ...",
    "greater_is_better": "Whether more of that metric is better.",
    "save_strategy": "When to save a checkpoint: no, steps (every save_steps), epoch, or best (where an evaluation is "
    "the best so far). The trained model is saved in any case.",
    "save_steps": "Optimiser steps between two checkpoints, or below 1 a share of all steps.",
    "save_total_limit": "Checkpoints that are kept; older ones are deleted, the best one is not.",
    "save_only_model": "Save checkpoints without the optimiser: smaller, but no run can go on from them.",
    "resume_from_checkpoint": "auto starts a run, goes on with it from its last whole checkpoint, or says that it is "
    "finished; false starts over; true goes on from the last whole checkpoint in output_dir; or a checkpoint-N folder.",
    "logging_strategy": "When to log: no, steps (every logging_steps) or epoch.",
    "report_to": "Where metrics go beside the log: wandb, tensorboard, mlflow, trackio, ..., all, or none.",
    "run_name": "Name of the run at the reporters.",
    "disable_tqdm": "Show no progress bar.",
    "push_to_hub": "Push the trained model to the Hugging Face Hub, and checkpoints as hub_strategy says.",
    "hub_model_id": "Repository to push to: user/name, or a name alone under the user of the token.",
    "hub_strategy": "What is pushed, and when: end, every_save (the model at each checkpoint), checkpoint (the last "
    "checkpoint too) or all_checkpoints.",
    "hub_private_repo": "Make a new repository private.",
    "hub_revision": "Branch to push to.",
    "hub_token": "Token of the Hub. No record of a run holds it.",
    "fp16": "float16 autocast, which overflows easily in preference training; prefer bf16.",
    "gradient_checkpointing": "Compute activations again in the backward pass instead of keeping them: less memory, "
    "about a fifth slower.",
    "gradient_checkpointing_kwargs": "Arguments of that, such as {use_reentrant: false}.",
    "dataloader_num_workers": "Processes that prepare batches on the side, for each training process; 0 means none.",
    "torch_compile": "Compile the model with torch.compile.",
}
