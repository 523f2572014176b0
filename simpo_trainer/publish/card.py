"""The model card, for the Hub and the output folder: what the model is, how it was trained and how to use it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..errors import SimPOError
from ..record.differences import told
from ..record.findings import Finding
from ..record.folders import CURVES
from ..record.methods import METHODS, Method
from ..record.metric_table import metrics_of, prefixes_of
from ..record.privacy import hub_name
from ..record.reader import read_record
from ..results.training_curves import training_curves

# Settings that do not change the trained model, or are shown elsewhere in the card.
_NOT_SHOWN = ("dataset_num_proc", "global_batch_size", "allow_changes")
# Unit of the log-probabilities that trl logs: sums over answers.
_OF_TRL = "nats"


Json = Mapping[str, Any]


def card_of_folder(folder: Path) -> None:
    """Write README.md and the training curves of a finished run, using only the files in its folder.

    Raises:
        SimPOError: the folder holds no manifest of a run, or one from an older version.
    """
    run, log_history = read_record(folder)
    if not {"loss", "training"} <= run.keys():
        raise SimPOError(
            f"The manifest in {folder} is from an older version and holds too little for a card. Train the run again."
        )
    write_card(folder, run, log_history)


def write_card(
    folder: Path,
    run: Json,
    log_history: Sequence[Json],
    *,
    repo: str | None = None,
    model_name: str | None = None,
    datasets: Sequence[str] = (),
    tags: Iterable[str] = (),
    metadata: Json | None = None,
) -> None:
    """Write README.md and the training curves into `folder`, and replace an existing card.

    Args:
        folder: where to write them.
        run: the manifest of the run, see :class:`~simpo_trainer.record.facts.RunFacts`.
        log_history: the log of its trainer.
        repo: the model's repository on the Hub, if it has one.
        model_name: the title.
        datasets: names of data sets on the Hub, in addition to those that the recipe names.
        tags: tags in addition to those of the method.
        metadata: further entries of the card's head, such as `language` and `license`.
    """
    method = METHODS[run["method"]]
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
    # Removed, not overwritten: a push in the background may hold a link to the last picture.
    (folder / CURVES).unlink(missing_ok=True)
    has_curves = training_curves(
        log_history,
        folder / CURVES,
        target_margin=run["target_margin"],
        unit=run["log_prob_unit"] or _OF_TRL,
        start=run.get("start"),
        held_out=run.get("held_out"),
    )
    title = model_name or (repo or "").split("/")[-1] or f"Model trained with {method.title}"
    parts = [
        f"# {title}\n\n{_introduction(run, method)}",
        f"## Use\n\n{_usage(repo, adapter, bool(run['tokenizer']['chat_template_sha256']))}",
        f"## Results\n\n{_results(run, method)}",
        f"![Training curves: loss, margin, log-probabilities, accuracy]({CURVES})" if has_curves else "",
        f"## Health\n\n{_health(run['findings'])}" if "findings" in run else "",
        f"## Training\n\n{_settings(run, method)}",
        f"## Data\n\n{_data(run, datasets)}",
        "## Versions\n\n" + "\n".join(f"- {name}: {version}" for name, version in run["versions"].items()),
        f"## Citation\n\n{method.citation}" if method.citation else "",
    ]
    text = "\n\n".join(part for part in parts if part)
    ModelCard(f"---\n{ModelCardData(**head).to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def _introduction(run: Json, method: Method) -> str:
    model, done, planned = run["model"], run["results"]["steps"], run["batch"]["optimiser_steps"]
    base = (
        f"[{model['name']}](https://huggingface.co/{model['name']})" if model["name"] else f"a model ({model['label']})"
    )
    what = "An adapter for" if model["adapter"] else "A fine-tuned version of"
    lines = [f"{what} {base}, trained {method.training}."]
    if done < planned:
        lines.append(f"**The training is not complete:** step {done} of {planned}.")
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


def _results(run: Json, method: Method) -> str:
    """Returns a table of the last value of each metric, with a column for the training and each evaluation set."""
    measured = run["results"]["metrics"]
    metrics, mark = metrics_of(measured)
    prefixes = prefixes_of(measured, mark)
    if not prefixes:
        return "Nothing was measured."
    headers = [prefix.rstrip("_").replace("_", " ") or "training, last log" for prefix in prefixes]
    words = {"unit": run["log_prob_unit"] or _OF_TRL, "won": method.won}
    rows = []
    for metric in metrics:
        if metric.row and run["method"] in (metric.methods or (run["method"],)):
            title, fmt = metric.row
            cells = [_number(measured.get(prefix + metric.name), fmt) for prefix in prefixes]
            rows.append([title.format(**words), *cells])
    return _table(["metric", *headers], rows)


def _health(found: Sequence[Json]) -> str:
    """Returns what the health monitor saw while the model trained."""
    return "\n".join(f"- {Finding.of(each).line}" for each in found) or "The health monitor found nothing to tell."


def _settings(run: Json, method: Method) -> str:
    training, batch, model, seeds = run["training"], run["batch"], run["model"], run["seeds"]
    steps, seed = training["warmup_steps"], seeds["seed"]
    warmup = f"{steps:g} of all steps" if 0 < steps < 1 else f"{steps:g} steps"
    own = {name: value for name, value in run[run["method"]].items() if value is not None and name not in _NOT_SHOWN}
    unit = "prompts" if run["data"]["sets"].get("train", {}).get("ranked") else method.rows
    rest = {
        "learning_rate": f"{training['learning_rate']:g}, {training['lr_scheduler_type']}, warm-up {warmup}",
        "optimiser": training["optim"],
        "epochs": f"{training['num_train_epochs']:g} ({batch['optimiser_steps']} optimiser steps)",
        "global batch": f"{batch['global']} {unit} ({batch['per_device']} per device x {batch['processes']} "
        f"process{'es' if batch['processes'] > 1 else ''} x "
        f"{batch['accumulation']} accumulation)",
        "seed": seed if seeds["data_seed"] is None else f"{seed}, data {seeds['data_seed']}",
        "parameters": f"{model['parameters']:,}, of which {model['trained_parameters']:,} trained",
        "dtype": f"{model['trained_dtype']} weights" + (f", {model['autocast']} autocast" if model["autocast"] else ""),
        "attention": model["attention"],
        "hardware": f"{', '.join(run['hardware']['devices'])}",
    }
    for change in run.get("changes") or []:
        rest[f"changed at step {change['step']}"] = told(change["settings"])
    rows = [[f"`{name}`", json.dumps(value)] for name, value in own.items()]
    rows += [[name, str(value)] for name, value in rest.items()]
    return f"{run['loss']}\n\n{_table(['setting', 'value'], rows)}"


def _data(run: Json, datasets: Sequence[str]) -> str:
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
    table = _table(["set", METHODS[run["method"]].rows, "left out", "cut to length", "hash of the tokens"], rows)
    return "\n".join(sources or ["The data sets are not named."]) + f"\n\n{table}"


def _size(found: Json) -> str:
    """Returns the number of pairs of a set; for ranked answers the number of prompts too."""
    return f"{found['pairs']} of {found['rows']} prompts" if found["ranked"] else str(found["pairs"])


def _source_line(source: Json) -> str:
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
