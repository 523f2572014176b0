"""The model card: what the model is, how it was trained and how to use it, for the Hub and for the folder itself."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..losses import LOSSES
from .manifest import describe_run, final_metrics
from .privacy import hub_name
from .report import training_curves

if TYPE_CHECKING:
    from ..trainer import SimPOTrainer

TAGS = ("simpo", "trl", "preference-optimization")
CURVES = "training_curves.png"

_CITATION = """\
```bibtex
@inproceedings{meng2024simpo,
  title     = {{SimPO}: Simple Preference Optimization with a Reference-Free Reward},
  author    = {Meng, Yu and Xia, Mengzhou and Chen, Danqi},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024}
}
```"""

# Metric, its name in the table, number format.
_METRICS = (
    ("loss", "loss", ".4f"),
    ("rewards/accuracies", "accuracy (share of pairs whose chosen answer is likelier)", ".3f"),
    ("logps/margins", "margin, {unit}", "+.4f"),
    ("logps/past_target", "share of pairs past the target margin", ".3f"),
    ("logps/chosen", "log-probability of chosen answers, {unit}", ".4f"),
    ("logps/rejected", "log-probability of rejected answers, {unit}", ".4f"),
)


def write_card(
    trainer: "SimPOTrainer",
    folder: Path,
    *,
    model_name: str | None = None,
    datasets: Sequence[str] = (),
    tags: Iterable[str] = (),
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write README.md and the training curves into `folder`, in the place of any card that is there.

    Args:
        model_name: the title.
        datasets: names of data sets on the Hub, beside those that the recipe names.
        tags: beside the usual ones.
        metadata: further entries of the card's head, such as `language` and `license`.
    """
    run = trainer.run_record.manifest or describe_run(trainer)
    named = [source["name"] for source in run["data"]["sources"] if hub_name(source["name"])]
    adapter = run["model"]["adapter"] is not None
    head = {
        "base_model": run["model"]["name"],
        "datasets": list(dict.fromkeys([*named, *datasets])) or None,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*TAGS, *tags])),
        **(metadata or {}),
    }
    # Not written over: a push in the background may hold a link to the last one.
    (folder / CURVES).unlink(missing_ok=True)
    has_curves = training_curves(
        trainer.state.log_history, folder / CURVES, target_margin=trainer.args.gamma_beta_ratio, unit=_unit(trainer)
    )
    # A repository that nothing is pushed to may not be there.
    repo = trainer.hub_model_id or (trainer.args.hub_model_id if trainer.args.push_to_hub else None)
    title = model_name or (repo or "").split("/")[-1] or "Model trained with SimPO"
    parts = [
        f"# {title}\n\n{_introduction(trainer, run)}",
        f"## Use\n\n{_usage(repo, adapter, bool(run['tokenizer']['chat_template_sha256']))}",
        f"## Results\n\n{_results(trainer)}",
        f"![Training curves: loss, margin, log-probabilities, accuracy]({CURVES})" if has_curves else "",
        f"## Training\n\n{_settings(trainer, run)}",
        f"## Data\n\n{_data(run, datasets)}",
        "## Versions\n\n" + "\n".join(f"- {name}: {version}" for name, version in run["versions"].items()),
        f"## Citation\n\nSimPO, the method ([arXiv 2405.14734](https://arxiv.org/abs/2405.14734)):\n\n{_CITATION}",
    ]
    text = "\n\n".join(part for part in parts if part)
    ModelCard(f"---\n{ModelCardData(**head).to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def _introduction(trainer: "SimPOTrainer", run: dict[str, Any]) -> str:
    model, state = run["model"], trainer.state
    base = (
        f"[{model['name']}](https://huggingface.co/{model['name']})" if model["name"] else f"a model ({model['label']})"
    )
    what = "An adapter for" if model["adapter"] else "A fine-tuned version of"
    lines = [
        f"{what} {base}, trained on preference pairs with SimPO (Simple Preference Optimization): a loss without a "
        "reference model, in which the reward of an answer is its log-probability per token."
    ]
    if state.global_step < state.max_steps:
        lines.append(f"**Not the end of its training:** step {state.global_step} of {state.max_steps}.")
    return "\n\n".join(lines)


def _usage(repo: str | None, adapter: bool, chat: bool) -> str:
    name = repo or "path/to/this/folder"
    prompt = '[{"role": "user", "content": "What is preference optimization?"}]' if chat else '"The best answer is"'
    if not adapter:
        return _code(
            "from transformers import pipeline",
            "",
            f'generate = pipeline("text-generation", model="{name}")',
            f"print(generate({prompt}, max_new_tokens=256, return_full_text=False)[0]['generated_text'])",
        )
    encode = (
        f'tokenizer.apply_chat_template({prompt}, add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        if chat
        else f'tokenizer({prompt}, return_tensors="pt")'
    )
    return _code(
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f"inputs = {encode}",
        "output = model.generate(**inputs.to(model.device), max_new_tokens=256)[0]",
        "print(tokenizer.decode(output[inputs['input_ids'].shape[1] :], skip_special_tokens=True))",
    )


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _results(trainer: "SimPOTrainer") -> str:
    """The last value of each metric, a column for the training and for each evaluation set."""
    metrics, key = final_metrics(trainer.state.log_history), "rewards/accuracies"
    prefixes = [name.removesuffix(key) for name in metrics if name.endswith(key)]
    if not prefixes:
        return "Nothing was measured."
    headers = [prefix.rstrip("_").replace("_", " ") or "training, last log" for prefix in prefixes]
    rows = [
        [title.format(unit=_unit(trainer)), *(_number(metrics.get(prefix + name), fmt) for prefix in prefixes)]
        for name, title, fmt in _METRICS
    ]
    return _table(["metric", *headers], rows)


def _settings(trainer: "SimPOTrainer", run: dict[str, Any]) -> str:
    args, batch, model = trainer.args, run["batch"], run["model"]
    warmup = f"{args.warmup_steps:g} of all steps" if 0 < args.warmup_steps < 1 else f"{args.warmup_steps:g} steps"
    scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    own = {name: value for name, value in run["simpo"].items() if name not in ("dataset_num_proc", "global_batch_size")}
    sets = run["data"]["sets"]
    unit = "prompts" if sets.get("train", {}).get("ranked") else "pairs"
    rest = {
        "learning_rate": f"{args.learning_rate:g}, {scheduler}, warm-up {warmup}",
        "optimiser": str(getattr(args.optim, "value", args.optim)),
        "epochs": f"{args.num_train_epochs:g} ({batch['optimiser_steps']} optimiser steps)",
        "global batch": f"{batch['global']} {unit} ({batch['per_device']} per device x {batch['processes']} "
        f"process{'es' if batch['processes'] > 1 else ''} x "
        f"{batch['accumulation']} accumulation)",
        "seed": args.seed if args.data_seed is None else f"{args.seed}, data {args.data_seed}",
        "parameters": f"{model['parameters']:,}, of which {model['trained_parameters']:,} trained",
        "dtype": f"{model['trained_dtype']} weights" + (f", {model['autocast']} autocast" if model["autocast"] else ""),
        "attention": model["attention"],
        "hardware": f"{', '.join(run['hardware']['devices'])}",
    }
    rows = [[f"`{name}`", json.dumps(value)] for name, value in own.items()]
    rows += [[name, str(value)] for name, value in rest.items()]
    return f"{_loss_line(trainer)}\n\n{_table(['setting', 'value'], rows)}"


def _loss_line(trainer: "SimPOTrainer") -> str:
    """The loss as a formula, where it is one that the package brings."""
    name = trainer.args.loss_type
    if type(trainer).pair_loss.__module__.split(".")[0] != __package__.split(".")[0]:
        return f"Loss: that of the trainer class `{type(trainer).__name__}`."
    formulas = {"sigmoid": "-log sigmoid(beta * z)", "hinge": "max(0, 1 - beta * z)"}
    if name not in formulas:
        return f"Loss: `{name}`, {(LOSSES[name].__doc__ or '').splitlines()[0]}"
    score = "average log-probability per token" if trainer.args.average_log_prob else "log-probability"
    line = (
        f"Loss of a pair: `{formulas[name]}` with `z = s(chosen) - s(rejected) - gamma_beta_ratio`, where `s` is an "
        f"answer's {score}"
    )
    if trainer.args.label_smoothing and name == "sigmoid":
        line += ", smoothed by `label_smoothing`"
    if trainer.args.margin_scale:
        line += "; with ranked answers, `z` is less by `margin_scale` times the difference of their scores or ranks"
    if trainer.args.sft_weight:
        line += "; added to it, `sft_weight` times the negative log-likelihood of the chosen answer"
    return f"{line}."


def _data(run: dict[str, Any], datasets: Sequence[str]) -> str:
    sources = [_source_line(source) for source in run["data"]["sources"]]
    sources += [f"- {_dataset_link(name)}" for name in datasets]
    rows = []
    for name, found in run["data"]["sets"].items():
        notes = found["tokenization"] or {}
        dropped = ", ".join(f"{count} {reason}" for reason, count in notes.get("dropped", {}).items())
        cut = f"{notes['truncated_prompts']} prompts, {notes['truncated_answers']} answers" if notes else "-"
        rows.append(
            [
                name,
                "streamed" if found["rows"] is None else _size(found),
                (dropped or "none") if notes else "-",
                cut,
                f"`{found['tokens_sha256'][:12]}`" if found["tokens_sha256"] else "-",
            ]
        )
    table = _table(["set", "pairs", "left out", "cut to length", "hash of the tokens"], rows)
    return "\n".join(sources or ["The data sets are not named."]) + f"\n\n{table}"


def _size(found: dict[str, Any]) -> str:
    """Pairs of a set, and the prompts that have them where answers are ranked."""
    return f"{found['pairs']} of {found['rows']} prompts" if found["ranked"] else str(found["pairs"])


def _source_line(source: dict[str, Any]) -> str:
    text = f"- {_dataset_link(source['name'])}"
    details = [
        f"{key} {source[key]}"
        for key in ("use", "config", "split", "fraction")
        if source.get(key) not in (None, 1, 1.0)
    ]
    return f"{text} ({', '.join(details)})" if details else text


def _dataset_link(name: str) -> str:
    return f"[{name}](https://huggingface.co/datasets/{name})" if hub_name(name) else name


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None, fmt: str) -> str:
    return "-" if value is None else f"{value:{fmt}}"


def _unit(trainer: "SimPOTrainer") -> str:
    return "nats per token" if trainer.args.average_log_prob else "nats"
