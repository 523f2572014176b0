"""The demonstration on a real model: its constraints, its prompts, its figures, and the page that it writes."""

import json
import math
import sys
from itertools import combinations
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import demo_all  # noqa: E402
import demo_prompts  # noqa: E402
import demo_report  # noqa: E402
import demo_runs  # noqa: E402
import demo_search  # noqa: E402
from demo_rules import KINDS, met, repeat_rate, score, sentences_of  # noqa: E402
from demo_scores import Evaluation, changed, evaluate, paired_interval  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("sentences", "one sentence", "It is big, and red.", "It is big. It is old."),
        ("sentences", "two sentences", 'He said "yes!" It rained.', "It rained all day."),
        ("at most words", 4, "It is very old.", "It is very very old."),
        ("at least words", 4, "It is very old.", "It is old."),
        ("no commas", None, "It is old and big.", "It is old, and big."),
        ("begin", "Well", "Well, it is old.", "Wellington is old indeed."),
        ("begin", "Well", '"Well it is old"', "well it is old"),
        ("question", None, "It is old, is it not?", "Is it? It is old."),
        ("exclamation", None, "It is so old!", "It is so old."),
        ("mention", "old", "It is Old, you know.", "It is older, you know."),
        ("avoid", "of", "Often it is offered.", "It is made of wood."),
        ("lower case", None, "it is old.", "It is old."),
        ("list", 2, "- it is old\n\n* it is big", "- it is old\n- it is big\nand red"),
        ("list", 2, "- it is old\n- it is big", "It is old\nIt is big"),
    ],
)
def test_a_constraint_is_met_or_not(kind, value, good, bad):
    constraint = [{"kind": kind, "value": value}]
    assert met(constraint, good) == [True] and met(constraint, bad) == [False]


def test_an_answer_that_says_nothing_meets_nothing():
    everything = [{"kind": kind, "value": each.values[0]} for kind, each in KINDS.items()]
    for answer in ("", "well!", "no no"):
        assert not any(met(everything, answer))
    assert score([], "Well it is old.", {"constraints": everything[:2]}) == 1.0


def test_an_answer_that_goes_round_meets_nothing():
    rule = [{"kind": "at least words", "value": 40}]
    assert met(rule, "The sea is old and deep and cold. " * 8) == [False]
    assert met(rule, " ".join(f"word{i}" for i in range(40)) + " and once more word1 word2 word3 word4") == [True]


def test_sentences_and_repetition():
    assert len(sentences_of("One. Two! Three? (Four.) Five")) == 5
    assert repeat_rate("a b c d e") == 0 and repeat_rate("a b") == 0
    assert repeat_rate("a b c d a b c d") == pytest.approx(1 / 5)


def _combinations(rows):
    found = [tuple(sorted(each["kind"] for each in row["constraints"])) for row in rows]
    return {kinds for kinds in found if len(kinds) == 2}


def test_nothing_held_out_is_trained_on():
    """Neither a topic nor a combination of two kinds; and every kind is there on both sides."""
    train, test = demo_prompts.make_prompts(330, False, 0), demo_prompts.make_prompts(330, True, 1)
    for rows in (train, test):
        assert len({row["prompt"][0]["content"] for row in rows}) == 330
        assert {each["kind"] for row in rows for each in row["constraints"]} == set(KINDS)
    assert not {row["topic"] for row in train} & {row["topic"] for row in test}
    kinds = [_combinations(rows) for rows in (train, test)]
    assert kinds[0] and kinds[1] and not kinds[0] & kinds[1]
    assert demo_prompts.make_prompts(330, True, 1) == test


def test_no_prompt_asks_for_what_cannot_be():
    for pair in demo_prompts._APART:
        assert pair <= set(KINDS) and len(pair) == 2
    asked = {frozenset(e["kind"] for e in row["constraints"]) for row in demo_prompts.make_prompts(2000, False, 3)}
    assert not asked & {frozenset(pair) for pair in demo_prompts._APART}
    assert asked <= {frozenset(pair) for pair in combinations(KINDS, 2)} | {frozenset([kind]) for kind in KINDS}


def evaluation(results):
    count = len(results)
    kinds = [["begin"] if i % 2 else ["list", "avoid"][: len(found)] for i, found in enumerate(results)]
    prompts = [f"Prompt [bold]{i}" for i in range(count)]
    answers = [f"Answer {i} [/x]" for i in range(count)]
    return Evaluation(prompts, kinds, results, answers, [10] * count, [i == 0 for i in range(count)])


BEFORE = evaluation([[False, True], [False], [True, True], [False]])
AFTER = evaluation([[True, True], [False], [True, False], [True]])


def test_figures_of_answers(tmp_path):
    assert BEFORE.share == 3 / 6 and list(BEFORE.shares) == [0.5, 0, 1, 0]
    assert AFTER.by_kind() == {"avoid": (0.5, 2), "begin": (0.5, 2), "list": (1.0, 2)}
    assert BEFORE.figures()["prompts with all met"] == 0.25 and BEFORE.figures()["cut off"] == 0.25
    mean, low, high = paired_interval(BEFORE, AFTER)
    assert mean == pytest.approx((0.5 + 0 - 0.5 + 1) / 4) and low <= mean <= high
    assert changed(BEFORE, AFTER) == (2, 1)
    rule = {"kind": "no commas", "value": None}
    row = {"prompt": [{"content": "x"}], "constraints": [rule], "answers": ["It is old."]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "token_counts": [4], "finish_reasons": ["stop"]}))
    assert evaluate(tmp_path / "rows.jsonl").met == [[True]]


@pytest.mark.parametrize(
    ("best", "tried"),
    [(2e-5, [2e-5, 4e-5, 1e-5]), (8e-5, [2e-5, 4e-5, 8e-5, 1.6e-4]), (5e-6, [2e-5, 4e-5, 1e-5, 5e-6, 2.5e-6])],
)
def test_the_search_of_a_rate_ends_between_two_worse_ones(best, tried):
    shares = demo_search.climb(lambda rate: -abs(math.log(rate / best)))
    assert list(shares) == pytest.approx(tried) and max(shares, key=shares.get) == pytest.approx(best)


def test_the_search_takes_one_after_the_other(tmp_path, monkeypatch):
    """The rate first, then the margin, beta and epochs with the best of the others; no held-out prompt is asked."""
    asked = []

    def greedy(self, model, prompts, name):
        asked.append((prompts, name.removeprefix("search/")))
        share = 0.3 + 0.1 * ("lr-2e-05" in name) + 0.1 * ("beta-5" in name) - 0.2 * ("ratio-1" in name)
        return type("Found", (), {"share": share})

    monkeypatch.setattr(demo_runs.Demo, "train", lambda self, name, words: tmp_path / name)
    monkeypatch.setattr(demo_runs.Demo, "greedy", greedy)
    (tmp_path / "search").mkdir()
    best, tried = demo_search.search(demo_runs.Demo(tmp_path, demo_runs.SMALL))
    assert {prompts for prompts, _ in asked} == {"search"}
    assert [each.setting for each in tried] == [
        *(demo_search.Setting(learning_rate=rate) for rate in (2e-5, 4e-5, 1e-5)),
        demo_search.Setting(2e-5, 1.0, 2.0),
        demo_search.Setting(2e-5, 0.5, 5.0),
        demo_search.Setting(2e-5, 0.5, 5.0, 2),
    ]
    assert best == demo_search.Setting(2e-5, 0.5, 5.0)  # the first of equals
    count = len(asked)
    assert demo_search.search(demo_runs.Demo(tmp_path, demo_runs.SMALL))[0] == best and len(asked) == count


def test_the_rate_of_another_method_is_searched_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(demo_runs.Demo, "train", lambda self, name, words: trained.append(words) or tmp_path / name)
    monkeypatch.setattr(demo_runs.Demo, "greedy", lambda *_: type("Found", (), {"share": 0.5}))
    (tmp_path / "search").mkdir()
    demo = demo_runs.Demo(tmp_path, demo_runs.SMALL)
    cell = next(each for each in demo_all.cells(demo_search.Setting(num_train_epochs=2)) if each.method == "dpo")
    for _ in range(2):
        assert demo_all._searched_rate(demo, cell) == 2e-5
    assert len(trained) == 3 and all("--num_train_epochs" in words and "dpo" in words for words in trained)


def test_the_rounds_take_prompts_of_the_demonstration(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(demo_runs.Demo, "call", lambda self, *words: called.append(words))
    demo = demo_runs.Demo(tmp_path, demo_runs.SMALL)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(9)))
    demo.rounds(2e-5)
    assert called == [("iterate", str(tmp_path / "rounds.yaml"), "--rounds", "3")]
    assert len((tmp_path / "rounds-prompts.jsonl").read_text().splitlines()) == 3
    assert "learning_rate: 2e-05" in (tmp_path / "rounds.yaml").read_text()


def test_the_report_shows_text_as_text(tmp_path):
    """Brackets in an answer are no markup, and a figure that is missing is said to be."""
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    setting = demo_search.Setting()
    held_out = {"start": {"accuracy": 0.5, "chosen": -1.0}}
    demo_report.show(console, BEFORE, AFTER, held_out, setting, [demo_search.Tried(setting, 0.4)])
    text = console.export_text()
    assert "Prompt [bold]0" in text and "[/x]" in text and "not run" in text and "chosen" in text
    demo_report.draw(tmp_path / "picture.png", BEFORE, {"after": AFTER})
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_says_what_was_not_run(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(demo_all._MARKS) + "\nbehind\n")
    monkeypatch.setattr(demo_all, "PAGE", page)
    monkeypatch.setattr(demo_all, "PICTURE", tmp_path / "page.png")
    monkeypatch.setattr(demo_all, "evaluate", lambda path: AFTER)
    demo, best = demo_runs.Demo(tmp_path, demo_runs.SMALL), demo_search.Setting()
    (tmp_path / "cells").mkdir()
    facts = {**AFTER.figures(), "interval": [0.1, -0.1, 0.2], "seconds": 60.0}
    facts["held_out"] = {"start": {"accuracy": 0.5, "chosen": -1.0}, "end": {"accuracy": 0.6, "chosen": -1.1}}
    (tmp_path / "cells" / "dpo-43.json").write_text(json.dumps(facts))
    demo_all.write_page(demo, BEFORE, best)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and " | 4" in line]
    assert sum("not run" in row for row in rows) == 12
    assert "| dpo | 43 | 66.7% | +0.100 (-0.100 to +0.200) |" in text
    again = demo_all.write_page(demo, BEFORE, best)
    assert again is None and page.read_text() == text
