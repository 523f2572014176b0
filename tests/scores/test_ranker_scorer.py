"""The scorer that compares answers, with a stand-in for its package."""

import sys
from types import ModuleType

import pytest

from answer_files import answer_row, write_answers
from simpo_trainer.answers.row_files import read_rows
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import AnnotateSettings
from simpo_trainer.scores.annotation import annotate
from simpo_trainer.scores.ranker_scorer import RankerScorer
from toy import assistant, toy_tokenizer, user

SETTINGS = AnnotateSettings(ranker="llm-blender/PairRM", batch_size=2)


class Blender:
    """Takes what the package takes, and ranks by length; `calls` holds what it was given."""

    calls: list = []

    def loadranker(self, ranker_path, device=None, **kwargs):
        if ranker_path != "llm-blender/PairRM":
            raise ValueError("reward model type not supported")
        self.ranker_tokenizer = toy_tokenizer()

    def rank(self, inputs, candidates, instructions=None, return_scores=False, batch_size=8, **rank_kwargs):
        assert return_scores and len({len(own) for own in candidates}) == 1 and len(candidates) == len(inputs)
        # So the package reads texts, by a name that transformers no longer has.
        assert self.ranker_tokenizer.batch_encode_plus(inputs)["input_ids"]
        self.calls.append((inputs, candidates, batch_size))
        return [[len(answer) - sum(map(len, own)) / len(own) for answer in own] for own in candidates]


@pytest.fixture
def package(monkeypatch):
    """Puts the stand-in in the place of the package."""
    module = ModuleType("llm_blender")
    module.Blender = Blender
    monkeypatch.setitem(sys.modules, "llm_blender", module)
    monkeypatch.setattr(Blender, "calls", [])


def test_answers_of_a_prompt_are_compared(package):
    rows = [
        answer_row(1, ["a", "bbb"]),
        answer_row(2, ["a", "bb", "ccc"]),
        answer_row(3, ["a"]),
        answer_row(4, ["b", "a"]),
    ]
    found = {row["key"]: scores for group in RankerScorer(SETTINGS).scores(rows) for row, scores in group}
    assert [found[row["key"]] for row in rows] == [[-1.0, 1.0], [-1.0, 0.0, 1.0], [None], [0.0, 0.0]]
    assert [len(inputs) for inputs, _, _ in Blender.calls] == [2, 1]
    assert {size for _, _, size in Blender.calls} == {2}
    assert Blender.calls[0][0][0] == "Say something on the number 1."


def test_several_turns_are_one_text(package):
    row = answer_row(1) | {"prompt": [user("Hello"), assistant("Hi"), user("Why?")]}
    list(RankerScorer(SETTINGS).scores([row]))
    assert Blender.calls[0][0] == ["USER: Hello\nASSISTANT: Hi\nUSER: Why?"]


def test_pairs_are_made_of_the_comparisons(package, tmp_path):
    output = annotate(write_answers(tmp_path / "a.jsonl", [answer_row(1, ["a", "bbb", "cc"])]), SETTINGS)
    [pair] = read_rows(output)
    assert (pair["chosen"], pair["rejected"]) == ([assistant("bbb")], [assistant("a")])


def test_a_package_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_blender", None)
    with pytest.raises(SimPOError, match="`pip install llm-blender`"):
        RankerScorer(SETTINGS)


def test_a_package_that_cannot_be_imported_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "llm_blender.py").write_text("from transformers.utils.hub import NO_SUCH_NAME\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_blender", raising=False)
    with pytest.raises(SimPOError, match="is installed, but cannot be imported: cannot import name 'NO_SUCH_NAME'"):
        RankerScorer(SETTINGS)


def test_a_ranker_that_cannot_be_loaded_is_an_error(package):
    with pytest.raises(SimPOError, match="'org/other' could not be loaded by llm-blender: reward model type not supp"):
        list(RankerScorer(AnnotateSettings(ranker="org/other")).scores([answer_row(1)]))
