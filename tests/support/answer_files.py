"""Files of answers as `simpo generate` writes them, made without a model."""

from simpo_trainer.answers.card import write_card
from simpo_trainer.answers.requests import hash_of
from simpo_trainer.answers.row_files import write_rows
from toy import user


def answer_row(number, answers=None, **columns):
    """A row of answers to the prompt of a number; unless given, they are four of different lengths."""
    prompt = [user(f"Say something on the number {number}.")]
    answers = answers or [f"{number} " + "very " * (seed * number % 7) + f"good {seed}" for seed in range(4)]
    return {
        "key": hash_of(prompt, {}),
        "prompt": prompt,
        "answers": answers,
        "finish_reasons": ["stop"] * len(answers),
        "token_counts": [len(answer.split()) for answer in answers],
        "seeds": [13, 21, 42, 79][: len(answers)],
        **columns,
    }


def write_answers(path, rows=None, count=8):
    """Write a file of answers with its card; returns its path."""
    rows = rows or [answer_row(number, kind=f"kind {number % 2}") for number in range(count)]
    write_card(path, {"generated": {"model": "toy", "prompts": len(rows)}})
    write_rows(path, sorted(rows, key=lambda row: row["key"]))
    return path
