"""Every chat template that trl ships, against the table in docs/chat-templates.md: which rendering its answers get.

A template of a later trl that the table lacks, or that has changed, fails here; the message shows the line for it.
"""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from datasets import Dataset

from simpo_trainer.data.drops import RowDropped
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.templates import probe_template, render_conversation
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import assistant, toy_tokenizer, user

FOLDER = files("trl") / "chat_templates"
NAMES = sorted(file.name.removesuffix(".jinja") for file in FOLDER.iterdir() if file.name.endswith(".jinja"))
DOCUMENT = Path(__file__).parents[2] / "docs" / "chat-templates.md"
SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<\w+_of_\w+>|<turn\|>|<\|turn>")
PROMPT = [user("What is it?")]
PLAIN, THINKING = "It is this.", "<think>\nIt may be.\n</think>\n\nIt is this."
# What a message says, and what the table says in its place.
REFUSALS = {
    "the header begins a thinking part that the answer lacks": "refused: the header begins a thinking part",
    "the header ends the thinking part with which the answer begins": "refused: the header ends a thinking part",
    "does not write the text of messages": "refused: takes lists of parts",
    "'str object' has no attribute 'text'": "refused: takes lists of parts",
    "'bos_token' is undefined": "refused: needs a BOS token",
}
# Without a BOS token, all others do as the table says.
NEEDS_BOS = {"llama3"}


def shipped(name, bos="<bos>"):
    text = (FOLDER / f"{name}.jinja").read_text()
    special = tuple(sorted(set(SPECIAL.findall(text))))
    return toy_tokenizer(text, bos=bos, eos="<eos>", special_tokens=special)


def outcome(tokenizer, answer):
    """How an answer is rendered, in the words of the table."""
    try:
        turn_end = probe_template(tokenizer, {})
        texts = render_conversation(tokenizer, turn_end, (PROMPT, [assistant(answer)], [assistant(answer + "!")]), {})
        for text in texts.answers:
            if isinstance(text, RowDropped):
                raise text
    except (RowDropped, SimPOError) as error:
        return next((said for message, said in REFUSALS.items() if message in str(error)), f"refused: {error}")
    return "second" if texts.second else "prefix"


def system_message(tokenizer):
    """What the template does with a system message, in the words of the table."""
    try:
        text = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *PROMPT], tokenize=False)
    except Exception as error:
        return "refused" if "ystem" in str(error) else "-"
    return "written" if "Be brief." in text else "-"


def line(name):
    """The line of the table for a template."""
    tokenizer = shipped(name)
    cells = [f"`{name}`", outcome(tokenizer, PLAIN), outcome(tokenizer, THINKING), system_message(tokenizer)]
    return f"| {' | '.join(cells)} |"


def documented():
    """The lines of the table in the document, by name."""
    section = DOCUMENT.read_text().split("## The templates of trl\n")[1]
    return {text.split("`")[1]: text for text in section.splitlines() if text.startswith("| `")}


@pytest.mark.parametrize("name", NAMES)
def test_template_does_as_the_table_says(name):
    assert documented().get(name) == line(name), f"the line for docs/chat-templates.md is\n{line(name)}"


def test_table_names_no_other_templates():
    assert list(documented()) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bos", [pytest.param("<bos>", marks=pytest.mark.slow), None], ids=["bos", "no bos"])
def test_what_is_trained_is_what_the_model_sees(name, bos):
    """Prompt ids of inference with one BOS at most; answers whole, with one end token, their last."""
    tokenizer = shipped(name, bos)
    if bos is None and name in NEEDS_BOS:
        assert outcome(tokenizer, PLAIN) == "refused: needs a BOS token"
        return
    assert [outcome(tokenizer, answer) for answer in (PLAIN, THINKING)] == line(name).split(" | ")[1:3]
    kept = [answer for answer in (PLAIN, THINKING) if outcome(tokenizer, answer) in ("prefix", "second")]
    rows = [{"prompt": PROMPT, "chosen": [assistant(a)], "rejected": [assistant(a + "!")]} for a in kept]
    if not rows:
        return
    limits = {"max_length": 9000, "max_prompt_length": 8000, "overlong": "error"}
    tokenized, _ = tokenize_preferences(Dataset.from_list(rows), tokenizer, RowSettings(**limits))
    end_id = probe_template(tokenizer, {}).token_id
    for answer, row in zip(kept, tokenized, strict=True):
        assert row["prompt_ids"] == tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
        assert bos is None or row["prompt_ids"].count(tokenizer.bos_token_id) <= 1
        for ids, end in ((row["chosen_ids"], ""), (row["rejected_ids"], "!")):
            assert ids[-1] == end_id and ids.count(end_id) == 1
            text = tokenizer.decode(row["prompt_ids"] + ids)
            assert "It is this." + end in text and text.count("It may be.") == ("It may be." in answer)
            assert "".join(text.split()).count("<think>It") == text.count("It may be."), "thinking that begins once"
