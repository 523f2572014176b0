"""The points of a run at which a process is killed, each as the fault that `hook/sitecustomize.py` reads."""

from typing import Any

_TRAINER = "simpo_trainer.train.run_trainer"
_SEAL = "simpo_trainer.record.seal"
_FINISH = "simpo_trainer.train.finish"


def _point(at: str, match: str = "", call: int = 1, when: str = "before") -> dict[str, Any]:
    return {"at": at, "match": match, "call": call, "when": when}


# What writes each file of a checkpoint, and how the file is called there; in the order in which they are written.
_WRITERS = {
    "the config": ("transformers.configuration_utils:PreTrainedConfig.to_json_file", "config.json"),
    "the model": ("transformers.modeling_utils:safe_save_file", "model.safetensors"),
    "the tokenizer": ("transformers.tokenization_utils_base:PreTrainedTokenizerBase.save_pretrained", ""),
    "the arguments": ("torch:save", "training_args.bin"),
    "the optimizer": ("torch:save", "optimizer.pt"),
    "the scheduler": ("torch:save", "scheduler.pt"),
    "the random state": ("torch:save", "rng_state"),
    "the trainer state": ("transformers.trainer_callback:TrainerState.save_to_json", "trainer_state.json"),
}


def _around(what: str, at: str, match: str, half: bool) -> dict[str, dict[str, Any]]:
    whens = ("before", "half", "after") if half else ("before", "after")
    names = {"before": f"before {what}", "half": f"in the middle of {what}", "after": f"after {what}"}
    return {names[when]: _point(at, match, when=when) for when in whens}


def _of_checkpoint(step: int) -> dict[str, dict[str, Any]]:
    """Before, in and after each file of a checkpoint, and its seal."""
    folder = f"checkpoint-{step}"
    found = _around("the open seal", f"{_SEAL}:_write", f"{folder}/seal.json", half=False)
    for what, (at, name) in _WRITERS.items():
        found |= _around(what, at, f"{folder}/{name}" if name else folder, half=bool(name))
    found |= {
        "before the seal": _point("simpo_trainer.train.full_disk:seal_checkpoint", folder),
        "while the seal is made": _point(f"{_SEAL}:_hash", folder, call=4),
        # The first rename is of the open seal.
        "before the seal is renamed": _point("os:replace", f"{folder}/seal.json", call=2),
        "after the seal": _point("os:replace", f"{folder}/seal.json", call=2, when="after"),
    }
    return {f"checkpoint-{step}, {what}": point for what, point in found.items()}


def inside(points: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of a checkpoint's points that are in the middle of a file, and those of its seal."""
    return {what: point for what, point in points.items() if "in the middle" in what or "seal" in what}


# Before there is a process group, and in it.
EARLY = {
    "in the imports, of torch": _point("torch"),
    "in the imports, of transformers": _point("transformers.trainer"),
    "in the imports, of the run": _point("simpo_trainer.run.one_run"),
    "before the lock": _point("simpo_trainer.train.lock_file:LockFile.write"),
    "after the lock": _point("simpo_trainer.train.lock_file:LockFile.write", when="after"),
    "while the data is loaded": _point("simpo_trainer.run.one_run:load_preferences"),
    "after the data is loaded": _point("simpo_trainer.run.one_run:load_preferences", when="after"),
    "before the tokenizer": _point("simpo_trainer.run.one_run:load_tokenizer"),
    "before the rows are tokenized": _point(f"{_TRAINER}:token_set"),
    "after the rows are tokenized": _point(f"{_TRAINER}:token_set", when="after"),
    "before it is decided where to go on": _point("simpo_trainer.run.one_run:go_on"),
}
TRAINING = {
    "the first step": _point("transformers.trainer:Trainer.training_step"),
    "the step behind a checkpoint": _point("transformers.trainer:Trainer.training_step", call=9),
    "a step in a logging window": _point("transformers.trainer:Trainer.training_step", call=15),
    "the first evaluation": _point("simpo_trainer.train.trainer:SimPOTrainer.evaluate"),
    "after the first evaluation": _point("simpo_trainer.train.trainer:SimPOTrainer.evaluate", when="after"),
    "the last step": _point("transformers.trainer:Trainer.training_step", call=30),
    "after the last step": _point("transformers.trainer:Trainer.training_step", call=30, when="after"),
}
FIRST_CHECKPOINT, LATER_CHECKPOINT, LAST_CHECKPOINT = (_of_checkpoint(step) for step in (8, 24, 30))
# With `save_total_limit: 2`, checkpoint-8 goes when checkpoint-24 is sealed.
ROTATION = {
    "before the rotation": _point(f"{_TRAINER}:rotate_checkpoints", call=3),
    "before the old seal is opened": _point(f"{_SEAL}:_open", "checkpoint-8"),
    "after the old seal is opened": _point(f"{_SEAL}:_open", "checkpoint-8", when="after"),
    "after one old file": _point("pathlib:Path.unlink", "checkpoint-8", when="after"),
    "after five old files": _point("pathlib:Path.unlink", "checkpoint-8", call=5, when="after"),
    "before the old folder is removed": _point("pathlib:Path.rmdir", "checkpoint-8"),
    "after the rotation": _point(f"{_TRAINER}:rotate_checkpoints", call=3, when="after"),
}
END = {
    "before the final save": _point(f"{_FINISH}:_save"),
    "in the middle of the final model": _point(
        "transformers.modeling_utils:safe_save_file", "out/model.safetensors", when="half"
    ),
    "after the final model": _point(
        "transformers.modeling_utils:safe_save_file", "out/model.safetensors", when="after"
    ),
    "before the final tokenizer": _point(_WRITERS["the tokenizer"][0], "out", call=5),
    "after the final save": _point(f"{_FINISH}:_save", when="after"),
    "before the metrics": _point(f"{_FINISH}:_save_metrics"),
    "in the middle of the final state": _point(_WRITERS["the trainer state"][0], "out/trainer_state.json", when="half"),
    "after the metrics": _point(f"{_FINISH}:_save_metrics", when="after"),
    "before the end's evaluation": _point(f"{_FINISH}:_evaluate"),
    "before the card": _point(f"{_FINISH}:_publish"),
    "after the card": _point(f"{_FINISH}:_publish", when="after"),
    "before the end seal": _point(f"{_FINISH}:seal_end"),
    "while the end seal is made": _point(f"{_SEAL}:_hash", "out/model.safetensors"),
    "before the end seal is renamed": _point("os:replace", "out/seal.json"),
    "after the end seal": _point(f"{_FINISH}:seal_end", when="after"),
    "in the removal of the last checkpoint": _point("pathlib:Path.unlink", "checkpoint-30", when="after"),
    "after all": _point("simpo_trainer.train.run_trainer:finish_run", when="after"),
}
# Those that the second process passes too.
OF_EVERY_RANK = {
    **{name: EARLY[name] for name in ("in the imports, of transformers", "after the data is loaded")},
    **{name: EARLY[name] for name in ("before the rows are tokenized", "before it is decided where to go on")},
    **TRAINING,
    **_around("the checkpoint's random state", "torch:save", "checkpoint-24/rng_state", half=True),
    **{
        f"{when} a checkpoint, {name}": point
        for when, name, point in (
            ("before", "all agree", _point(f"{_TRAINER}:CheckpointAttempt.begin", call=3)),
            ("before", "it is sealed", _point(f"{_TRAINER}:CheckpointAttempt.seal", call=3)),
            ("after", "it is sealed", _point(f"{_TRAINER}:CheckpointAttempt.seal", call=3, when="after")),
        )
    },
    **{name: END[name] for name in ("before the final save", "after the final save", "before the metrics")},
    **{name: END[name] for name in ("before the end's evaluation", "before the card", "after all")},
}
# Where the first process waits while the launcher is killed.
OF_LAUNCHER = {
    **{name: EARLY[name] for name in ("in the imports, of torch", "after the lock")},
    **{name: TRAINING[name] for name in ("a step in a logging window", "the first evaluation")},
    **{
        name: LATER_CHECKPOINT[f"checkpoint-24, {name}"]
        for name in (
            "in the middle of the model",
            "before the optimizer",
            "before the seal is renamed",
            "after the seal",
        )
    },
    **{name: ROTATION[name] for name in ("after one old file",)},
    **{
        name: END[name]
        for name in (
            "in the middle of the final model",
            "after the end seal",
        )
    },
}
