"""`kill -9` at random moments of both verbs, then the same command: nothing is made twice, lost or different."""

import os
import random
import signal
import time
import traceback

import pytest

from answering import answering_recipe, prompts
from simpo_trainer.answers.generation import generate
from simpo_trainer.answers.journal import Journal
from simpo_trainer.answers.transformers_engine import TransformersEngine
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings
from simpo_trainer.scores import function_scorer
from simpo_trainer.scores.annotation import annotate

pytestmark = pytest.mark.slow

KILLS = 20
RULES = """
import time
def score(prompt, answer, row):
    time.sleep(0.004)
    return len(answer)
"""


@pytest.fixture
def both(tmp_path, monkeypatch):
    """A function that runs both verbs into a folder, slowly, and notes there what is generated and what is kept."""
    (tmp_path / "rules.py").write_text(RULES)
    recipe = answering_recipe(tmp_path, prompts(60))
    answered, add = TransformersEngine._answered, Journal.add

    def slowly(self, group):
        time.sleep(0.02)
        note("generated", [prompt.hash for prompt in group])
        return answered(self, group)

    def noted(self, rows):
        add(self, rows)
        note(self.path.name.partition(".")[2], [row["key"] for row in rows])

    def note(name, keys):
        with (tmp_path / f"{name}.log").open("a") as log:
            log.writelines(f"{key}\n" for key in keys)

    monkeypatch.setattr(TransformersEngine, "_answered", slowly)
    monkeypatch.setattr(Journal, "add", noted)
    monkeypatch.setattr(function_scorer, "_GROUP_SECONDS", 0.03)

    def run(folder):
        folder.mkdir(exist_ok=True)
        settings = GenerateSettings(output=str(folder / "answers.jsonl"), max_new_tokens=4, batch_size=10, seeds=[1, 2])
        answers = generate(recipe, settings)
        annotate(answers, AnnotateSettings(score=f"{tmp_path / 'rules.py'}:score", output=str(folder / "pairs.jsonl")))

    return run


def in_child(work, seconds=None):
    """Run in a forked process, and kill that after a while; returns whether it was killed."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def test_twenty_kills(both, tmp_path):
    """Spread over both verbs: the work begins anew in another folder as soon as it is done."""
    in_child(lambda: both(tmp_path / "whole"))
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(expected) == 6
    rng, kills, lives, interrupted = random.Random(0), 0, 0, set()
    while kills < KILLS or lives < 3:
        folder, lives, of_life = tmp_path / f"life-{lives}", lives + 1, 0
        for log in tmp_path.glob("*.log"):
            log.unlink()
        while in_child(lambda folder=folder: both(folder), rng.uniform(0.2, 0.8)):
            of_life += 1
            interrupted |= {path.name.partition("-")[0] for path in folder.glob("*.partial")}
        kills += of_life
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."} == expected
        for log in tmp_path.glob("*.log"):
            keys = log.read_text().split()
            # A batch that a kill interrupts is generated again; whatever was kept is not.
            assert len(keys) <= (60 + 5 * of_life if log.name == "generated.log" else len(set(keys)))
    assert interrupted == {"answers.jsonl.partial", "answers.scores"}
