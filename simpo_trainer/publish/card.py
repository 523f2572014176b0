"""The model card: what the model is, how it was trained and how to use it, for the Hub and for the folder itself."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, ModelCardData

from ..record.manifest import describe_run, final_metrics, own_loss
from ..record.privacy import hub_name
from ..results.training_curves import training_curves
from .card_texts import METHOD_TEXTS, MethodText

if TYPE_CHECKING:
    from ..baselines.common import BaselineTrainer
    from ..train.trainer import SimPOTrainer

CURVES = "training_curves.png"
# Settings that change nothing about what is trained, or stand elsewhere.
_NOT_SHOWN = ("dataset_num_proc", "global_batch_size")


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
    method = METHOD_TEXTS[trainer.method]
    named = [source["name"] for source in run["data"]["sources"] if hub_name(source["name"])]
    adapter = run["model"]["adapter"] is not None
    head = {
        "base_model": run["model"]["name"],
        "datasets": list(dict.fromkeys([*named, *datasets])) or None,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*method.tags, *tags])),
        **(metadata or {}),
    }
    # Not written over: a push in the background may hold a link to the last one.
    (folder / CURVES).unlink(missing_ok=True)
    has_curves = training_curves(
        trainer.state.log_history,
        folder / CURVES,
        target_margin=trainer.args.objective.target_margin if trainer.method == "simpo" else None,
        unit=_unit(trainer),
    )
    # A repository that nothing is pushed to may not be there.
    repo = trainer.hub_model_id or (trainer.args.hub_model_id if trainer.args.push_to_hub else None)
    title = model_name or (repo or "").split("/")[-1] or f"Model trained with {method.name}"
    parts = [
        f"# {title}\n\n{_introduction(trainer, run, method)}",
        f"## Use\n\n{_usage(repo, adapter, bool(run['tokenizer']['chat_template_sha256']))}",
        f"## Results\n\n{_results(trainer, method)}",
        f"![Training curves: loss, margin, log-probabilities, accuracy]({CURVES})" if has_curves else "",
        f"## Training\n\n{_settings(trainer, run)}",
        f"## Data\n\n{_data(run, datasets)}",
        "## Versions\n\n" + "\n".join(f"- {name}: {version}" for name, version in run["versions"].items()),
        f"## Citation\n\n{method.citation}" if method.citation else "",
    ]
    text = "\n\n".join(part for part in parts if part)
    ModelCard(f"---\n{ModelCardData(**head).to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def _introduction(trainer: "SimPOTrainer", run: dict[str, Any], method: MethodText) -> str:
    model, state = run["model"], trainer.state
    base = (
        f"[{model['name']}](https://huggingface.co/{model['name']})" if model["name"] else f"a model ({model['label']})"
    )
    what = "An adapter for" if model["adapter"] else "A fine-tuned version of"
    lines = [f"{what} {base}, trained {method.training}."]
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


def _results(trainer: "SimPOTrainer", method: MethodText) -> str:
    """The last value of each metric, a column for the training and for each evaluation set."""
    metrics, key = final_metrics(trainer.state.log_history), method.metrics[1][0]
    prefixes = [name.removesuffix(key) for name in metrics if name.endswith(key)]
    if not prefixes:
        return "Nothing was measured."
    headers = [prefix.rstrip("_").replace("_", " ") or "training, last log" for prefix in prefixes]
    rows = [
        [
            title.format(unit=_unit(trainer)),
            *(_number(metrics.get(prefix + name), fmt) for prefix in prefixes),
        ]
        for name, title, fmt in method.metrics
    ]
    return _table(["metric", *headers], rows)


def _settings(trainer: "SimPOTrainer", run: dict[str, Any]) -> str:
    args, batch, model = trainer.args, run["batch"], run["model"]
    warmup = f"{args.warmup_steps:g} of all steps" if 0 < args.warmup_steps < 1 else f"{args.warmup_steps:g} steps"
    scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    own = {name: value for name, value in run[run["method"]].items() if value is not None and name not in _NOT_SHOWN}
    sets = run["data"]["sets"]
    unit = "prompts" if sets.get("train", {}).get("ranked") else METHOD_TEXTS[trainer.method].rows
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
    """The loss as a formula, where it is one that the package brings, and otherwise in words."""
    if trainer.method != "simpo":
        return cast("BaselineTrainer", trainer).describe_loss()
    if own := own_loss(trainer):
        return f"Loss: that of the trainer class `{own}`."
    objective = trainer.args.objective
    terms = [
        f"`{part.loss.formula}` ({part.name}, {_paper(part.loss.source)})"
        if len(objective.parts) == 1
        else f"{part.weight:g} times `{part.loss.formula}` ({part.name}, {_paper(part.loss.source)})"
        for part in objective.parts
    ]
    line = f"Loss of a pair: {' plus '.join(terms)}"
    if objective.parts[0].loss.compares == "either" and not objective.compares_averages:
        line += ", on log-probabilities of whole answers"
    if trainer.args.label_smoothing and any(part.name in ("sigmoid", "cpo") for part in objective.parts):
        line += ", smoothed by `label_smoothing`"
    if trainer.args.margin_scale:
        line += (
            "; with ranked answers, the target margin grows by `margin_scale` times the difference of scores or ranks"
        )
    if trainer.args.sft_weight:
        line += "; added to it, `sft_weight` times the negative log-likelihood of the chosen answer"
    notation = "`delta` is the log-probability of the chosen answer less that of the rejected one"
    if objective.compares_averages:
        notation += ", each per token (`a`)"
    if any("z" in part.loss.formula for part in objective.parts):
        notation += ", and `z = delta - gamma_beta_ratio`"
    return f"{line}. {notation[0].upper() if notation[0] != '`' else notation[0]}{notation[1:]}."


def _unit(trainer: "SimPOTrainer") -> str:
    """The unit of log-probabilities and margins; trl's are sums over answers."""
    return trainer.args.objective.unit if trainer.method == "simpo" else "nats"


def _paper(source: str) -> str:
    is_number = source.replace(".", "").isdigit()
    return f"[arXiv {source}](https://arxiv.org/abs/{source})" if is_number else source


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
    table = _table(["set", METHOD_TEXTS[run["method"]].rows, "left out", "cut to length", "hash of the tokens"], rows)
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
