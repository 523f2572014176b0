"""Compare the quickstart's model before and after training, on instructions that it never saw.

This module does not use the package's trainer, so its figures check the trainer independently: log-probabilities come
from the model's logits, answers from `generate`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SimPOError
from .tasks import is_right

BATCH_SIZE = 100
MAX_NEW_TOKENS = 32
SAMPLES = 3

Row = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """The figures of one model on the held-out pairs and prompts.

    Log-probabilities are averages over an answer's tokens, end token included, in nats per token. `right_share` is the
    share of right greedy answers, `answer_tokens` the mean length of all greedy answers, end token included.
    """

    pair_accuracy: float
    margin: float
    chosen_log_prob: float
    right_share: float
    answer_tokens: float
    right_share_by_kind: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """A greedy answer and its length in tokens, end token included."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One held-out instruction with the answers of both models."""

    instruction: str
    right: str
    before: str
    after: str


def compare(folder: Path, console: Console) -> None:
    """Score `folder/model` and `folder/trained`, print two tables and write `folder/comparison.json`.

    Raises:
        SimPOError: a file is missing in `folder`, or training did not raise the pair accuracy.
    """
    _check_complete(folder)
    pairs, prompts = _read_lines(folder / "data" / "test.jsonl"), _read_lines(folder / "prompts.jsonl")
    before, answers_before = _evaluate(folder / "model", pairs, prompts)
    after, answers_after = _evaluate(folder / "trained", pairs, prompts)
    samples = _samples(prompts, answers_before, answers_after)
    console.print(_scores_table(before, after, len(pairs)), _samples_table(samples))
    result = {"before": asdict(before), "after": asdict(after), "samples": [asdict(sample) for sample in samples]}
    (folder / "comparison.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if after.pair_accuracy <= before.pair_accuracy:
        raise SimPOError(
            f"The pair accuracy went from {before.pair_accuracy:.3f} to {after.pair_accuracy:.3f}; SimPO has to raise "
            "it. Check that the training log shows rising rewards/accuracies."
        )


def average_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Row]],
    answers: Sequence[list[Row]],
) -> torch.Tensor:
    """Returns the mean log-probability per token of each answer given its prompt, in nats: float32, shape (rows,)."""
    averages = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = len(_token_ids(tokenizer, prompt, waiting=True)[0])
        ids = _token_ids(tokenizer, prompt + answer, waiting=False)
        with torch.inference_mode():
            log_probs = model(input_ids=ids).logits.float().log_softmax(-1)
        # The logits at one position predict the token at the next.
        averages.append(log_probs[0, :-1].gather(-1, ids[0, 1:, None])[start - 1 :].mean())
    return torch.stack(averages)


def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str]
) -> list[Answer]:
    """Returns the model's answer to each instruction, with the most likely token at each step."""
    answers = []
    generate: Any = model.generate  # typed as a tensor by nn.Module
    for start in range(0, len(instructions), BATCH_SIZE):
        texts = [
            _render(tokenizer, [{"role": "user", "content": instruction}], waiting=True)
            for instruction in instructions[start : start + BATCH_SIZE]
        ]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        output = generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = output[:, batch["input_ids"].shape[1] :]
        lengths = (new != tokenizer.pad_token_id).sum(1).tolist()
        decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
        answers += [Answer(text, length) for text, length in zip(decoded, lengths, strict=True)]
    return answers


def _evaluate(model_folder: Path, pairs: Sequence[Row], prompts: Sequence[Row]) -> tuple[Scores, list[Answer]]:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)  # comes in eval mode
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    questions = [row["prompt"] for row in pairs]
    chosen = average_log_probs(model, tokenizer, questions, [row["chosen"] for row in pairs])
    rejected = average_log_probs(model, tokenizer, questions, [row["rejected"] for row in pairs])
    answers = greedy_answers(model, tokenizer, [row["instruction"] for row in prompts])
    right = [is_right(row["right"], answer.text) for row, answer in zip(prompts, answers, strict=True)]
    by_kind: dict[str, list[bool]] = {}
    for row, correct in zip(prompts, right, strict=True):
        by_kind.setdefault(row["kind"], []).append(correct)
    scores = Scores(
        pair_accuracy=(chosen > rejected).float().mean().item(),
        margin=(chosen - rejected).mean().item(),
        chosen_log_prob=chosen.mean().item(),
        right_share=sum(right) / len(right),
        answer_tokens=sum(answer.tokens for answer in answers) / len(answers),
        right_share_by_kind={kind: sum(found) / len(found) for kind, found in sorted(by_kind.items())},
    )
    return scores, answers


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Row], waiting: bool) -> str:
    """Returns the conversation as text; if it is `waiting` for an answer, with the assistant's mark at the end."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=waiting)
    assert isinstance(text, str)
    return text


def _token_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Row], waiting: bool) -> torch.Tensor:
    text = _render(tokenizer, messages, waiting)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def _samples(prompts: Sequence[Row], before: Sequence[Answer], after: Sequence[Answer]) -> list[Sample]:
    """Returns the first prompts with different answers of the two models, better or worse, one of each kind."""
    samples: dict[str, Sample] = {}
    for row, old, new in zip(prompts, before, after, strict=True):
        if old.text != new.text and len(samples) < SAMPLES:
            samples.setdefault(row["kind"], Sample(row["instruction"], row["right"], old.text, new.text))
    return list(samples.values())


def _scores_table(before: Scores, after: Scores, held_out: int) -> Table:
    table = Table(title=f"{held_out} held-out instructions", title_justify="left")
    table.add_column("")
    table.add_column("before SimPO", justify="right")
    table.add_column("after SimPO", justify="right")
    for name, old, new in (
        ("right greedy answers", f"{before.right_share:.1%}", f"{after.right_share:.1%}"),
        ("mean length of a greedy answer, tokens", f"{before.answer_tokens:.1f}", f"{after.answer_tokens:.1f}"),
        ("pair accuracy: chosen above rejected", f"{before.pair_accuracy:.1%}", f"{after.pair_accuracy:.1%}"),
        ("margin, nats per token", f"{before.margin:+.2f}", f"{after.margin:+.2f}"),
        ("log-prob of chosen, nats per token", f"{before.chosen_log_prob:.2f}", f"{after.chosen_log_prob:.2f}"),
    ):
        table.add_row(name, old, new)
    return table


def _samples_table(samples: Sequence[Sample]) -> Table:
    table = Table(title="The first answers that changed, of three kinds", title_justify="left", show_lines=True)
    for column in ("instruction", "right answer", "before SimPO", "after SimPO"):
        table.add_column(column)
    for sample in samples:
        # Brackets in an answer are text here, not rich's markup.
        table.add_row(*(Text(cell) for cell in (sample.instruction, sample.right, sample.before, sample.after)))
    return table


def _check_complete(folder: Path) -> None:
    """Raise an error that names the step of the quickstart that was not run in `folder`, if any."""
    prepared = ("model/config.json", "data/test.jsonl", "prompts.jsonl")
    if missing := [name for name in prepared if not (folder / name).is_file()]:
        raise SimPOError(
            f"{folder} has no {' and no '.join(missing)}; compare needs what prepare writes. "
            f"Run `python scripts/quickstart.py prepare --folder {folder}`."
        )
    if not (folder / "trained" / "config.json").is_file():
        raise SimPOError(
            f"{folder / 'trained'} holds no trained model; compare needs one. Run `simpo train recipes/quickstart.yaml"
            f" --model_name_or_path {folder / 'model'} --dataset_name {folder / 'data'}"
            f" --output_dir {folder / 'trained'}`."
        )


def _read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
