"""Processes of one run that differ: refused before the first step, or told."""

import json

import pytest

from models import random_pairs
from runs import make_trainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.train import agreement
from simpo_trainer.train.agreement import check_same_folder, check_same_run
from simpo_trainer.train.lock import LOCK


@pytest.fixture
def second(monkeypatch):
    """What differs in a second process, by path of keys."""
    found = {}

    def gathered(own):
        other = json.loads(json.dumps(own[0])) | {"host": "node-1"}
        for (*path, last), value in found.items():
            place = other
            for key in path:
                place = place[key]
            place[last] = value
        return [*own, other]

    monkeypatch.setattr(agreement, "gather_object", gathered)
    return found


def test_processes_that_agree(second, tmp_path, caplog):
    (tmp_path / LOCK).touch()
    check_same_run({"beta": 2.0}, tmp_path, 2)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("beta", 3.0, "beta is 3.0 instead of 2.0"),
        ("the training pairs", "b" * 32, "the training pairs are not the same"),
    ],
)
def test_another_run_is_refused(second, tmp_path, name, value, words):
    second["run", name] = value
    with pytest.raises(SimPOError, match=f"Rank 1 on node-1 is about to make another run than rank 0: {words}"):
        check_same_run({"beta": 2.0, "the training pairs": "a" * 32}, tmp_path, 2)


def test_weights_are_those_of_rank_0(second, tmp_path):
    """Under FSDP2 the other processes have none when they are compared."""
    second["run", "the base model"] = "b"
    check_same_run({"the base model": "a"}, tmp_path, 2)


def test_other_versions_and_another_folder_are_told(second, tmp_path, caplog):
    (tmp_path / LOCK).touch()
    second["versions", "torch"] = "1.0"
    second["sees the folder",] = False
    check_same_run({}, tmp_path, 2)
    assert "Rank 1 on node-1 has other versions than rank 0: torch is 1.0 instead of" in caplog.text
    assert "is another folder on Rank 1 on node-1 than on rank 0, which saves the model" in caplog.text


def test_a_checkpoint_that_one_process_does_not_see(second, tmp_path):
    (tmp_path / "trainer_state.json").touch()
    check_same_folder(tmp_path, 2)
    second["sees",] = False
    with pytest.raises(SimPOError, match="Rank 1 on node-1 does not see the checkpoint .* which rank 0 goes on"):
        check_same_folder(tmp_path, 2)


def test_a_training_compares(monkeypatch, tmp_path):
    def other(own, processes):
        return [own, {**own, "run": {**own["run"], "beta": -1.0}}]

    monkeypatch.setattr(agreement, "_gathered", other)
    with pytest.raises(SimPOError, match=r"another run than rank 0: beta is -1\.0 instead of"):
        make_trainer(tmp_path, random_pairs(8), max_steps=1).train()


def test_going_on_compares(monkeypatch, tmp_path):
    make_trainer(tmp_path, random_pairs(8), max_steps=1, save_strategy="steps", save_steps=1).train()

    def blind(own, processes):
        return [own, {**own, "sees": False}]

    monkeypatch.setattr(agreement, "_gathered", blind)
    trainer = make_trainer(tmp_path, random_pairs(8), max_steps=1, save_strategy="steps", save_steps=1)
    with pytest.raises(SimPOError, match="does not see the checkpoint"):
        trainer.train(resume_from_checkpoint=True)
