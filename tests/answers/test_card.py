"""The data card: facts that a program reads, tables that people read, nothing that is private or markup."""

from pathlib import Path

import pytest

from simpo_trainer import SimPOError
from simpo_trainer.answers.card import card_path, check_same, read_card, write_card


def test_facts_are_read_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    sections = {"generated": {"answers": 12_345, "tokens": {"mean": 3.5}, "seeds": [1, 2], "sets": [{"name": "x"}]}}
    write_card(file, sections)
    assert card_path(file).name == "rows.card.md"
    assert read_card(file) == sections
    text = card_path(file).read_text()
    assert "| answers | 12,345 |" in text and "| tokens: mean | 3.5 |" in text and "| seeds | 1, 2 |" in text
    assert "| sets 1: name | x |" in text


def test_nothing_private_and_no_markup_is_in_it(tmp_path):
    file = tmp_path / "rows.jsonl"
    name = "a|b <img src=x> `c` [d](e)\n---\n# f"
    write_card(file, {"generated": {"model": str(Path.home() / "models" / "x"), "name": name, "token": "s"}})
    facts, body = card_path(file).read_text().split("\n---\n\n", 1)
    assert str(Path.home()) not in facts + body
    assert "token" not in facts + body
    assert "| name | a\\|b &lt;img src=x&gt; \\`c\\` \\[d\\](e) --- \\# f |" in body
    assert read_card(file)["generated"]["name"] == name


def test_a_file_of_other_settings_is_not_overwritten(tmp_path):
    file = tmp_path / "rows.jsonl"
    with pytest.raises(SimPOError, match="no data card beside it"):
        check_same(file, "generated", {"seeds": (1,)})
    write_card(file, {"generated": {"identity": {"seeds": [1]}}})
    check_same(file, "generated", {"seeds": (1,)})
    with pytest.raises(SimPOError, match=r"made with other settings: seeds \[1\] there, \[2\] here"):
        check_same(file, "generated", {"seeds": (2,)})


def test_a_broken_card_is_told(tmp_path):
    for text in ("no card", "---\n{a: \n---\n"):
        card_path(tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(SimPOError, match="data card .* cannot be read"):
            read_card(tmp_path / "rows.jsonl")
