"""Answers while a model trains: the same as greedy decoding by hand, in a file of the owner's, kept over a resume."""

import json
import stat

import pytest
import torch
from datasets import Dataset

from models import EOS, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer, train_log, weights_of
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.greedy import greedy_answers
from simpo_trainer.record.samples import distinct, figures_of_samples, keep_until, read_samples, repeat_rate
from simpo_trainer.tokens.prompt_file import read_prompt_ids
from toy import toy_tokenizer

TRAIN, HELD_OUT = random_pairs(16), random_pairs(12, seed=1)
SETTINGS = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "sample_prompts": 3}


def trainer_in(folder, **settings):
    return make_trainer(folder, TRAIN, eval_dataset=Dataset.from_list(HELD_OUT), **{**SETTINGS, **settings})


def test_figures_of_answers():
    assert repeat_rate([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5) and repeat_rate([1, 2]) == 0
    assert distinct([[1, 2, 3], [1, 2, 4]]) == 3 / 4 and distinct([[], [1]]) == 0
    figures = figures_of_samples([[7] * 10, [1, 2, 3, 4, 5]], [False, True])
    assert figures == pytest.approx({"tokens": 7.5, "ended": 0.5, "repeat_rate": 6 / 7 / 2, "distinct_2": 5 / 13})


def by_hand(model, prompt, count):
    """The likeliest token, one after the other, each by a forward over everything before it."""
    ids = list(prompt)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == EOS:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_answers_are_those_of_greedy_decoding(tmp_path):
    trainer = make_trainer(tmp_path, TRAIN)
    prompts = [row["prompt_ids"] for row in HELD_OUT[:4]]
    model = tiny_model().eval()
    found = greedy_answers(trainer.model, prompts, trainer.accelerator, end_ids=[EOS], pad_id=0, max_new_tokens=12)
    assert [(each.ids, each.ended) for each in found] == [by_hand(model, prompt, 12) for prompt in prompts]


def test_samples_stand_in_the_log_and_in_a_file_for_the_owner(tmp_path, capsys):
    trainer = trainer_in(tmp_path)
    trainer.train()
    rows = read_samples(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3 + [4] * 3
    assert stat.S_IMODE((tmp_path / "samples.jsonl").stat().st_mode) == 0o600
    logged = [entry for entry in trainer.state.log_history if "samples/tokens" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4]
    assert logged[1]["samples/tokens"] == sum(row["tokens"] for row in rows[3:6]) / 3
    assert "step 2  samples  tokens" in capsys.readouterr().out
    prompts = {word_tokenizer().decode(row["prompt_ids"], skip_special_tokens=True) for row in HELD_OUT}
    assert {row["prompt"] for row in rows} <= prompts


def test_samples_leave_the_training_alone(tmp_path):
    runs = [trainer_in(tmp_path / str(count), sample_prompts=count) for count in (0, 3)]
    for trainer in runs:
        trainer.train()
    assert train_log(runs[0], "loss") == train_log(runs[1], "loss")
    one, other = map(weights_of, runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "0" / "samples.jsonl").exists()


def test_collapse_in_words_is_found(tmp_path):
    trainer = trainer_in(tmp_path, max_steps=1)
    trainer.train()
    monitor = trainer.health
    monitor._forget()
    start = {"tokens": 20.0, "ended": 1.0, "repeat_rate": 0.0, "distinct_2": 0.9}
    monitor.samples(0, start)
    assert not monitor.findings
    monitor.samples(5, {"tokens": 90.0, "ended": 0.5, "repeat_rate": 0.7, "distinct_2": 0.3})
    found = {each["rule"]: each for each in monitor.findings}
    assert set(found) == {"repeats", "alike", "no end", "answers longer"}
    assert found["repeats"]["collapse"] and "from 0.00 to 0.70" in found["repeats"]["seen"]


def test_prompts_come_from_a_file_too(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "w5 w6"}\n\n{"prompt": "w7"}\n')
    trainer_in(tmp_path / "out", sample_prompts=str(file), max_steps=2).train()
    rows = read_samples(tmp_path / "out" / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(0, "w5 w6"), (0, "w7"), (2, "w5 w6"), (2, "w7")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "is no file here"),
        ("", "holds no prompt"),
        ('{"prompt": "w5"}\nw6', "line 2: not valid JSON"),
        ('{"question": "w5"}', "line 1: there is no prompt"),
        ('["w5"]', "line 1: there is no prompt"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_is_told_before_the_first_step(tmp_path, text, error):
    file = tmp_path / "mine.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SimPOError, match=error):
        trainer_in(tmp_path / "out", sample_prompts=str(file)).train()


def test_a_chat_model_gets_its_template(tmp_path):
    file, tokenizer = tmp_path / "mine.jsonl", toy_tokenizer()
    messages = [{"role": "user", "content": "is it"}]
    file.write_text(json.dumps({"prompt": "is it"}) + "\n" + json.dumps({"prompt": messages}))
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert read_prompt_ids(file, tokenizer) == [expected, expected]


def test_an_earlier_step_takes_back_later_samples_and_a_torn_line(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 2, 4)) + '{"step": 6, "ans')
    assert [row["step"] for row in read_samples(file)] == [0, 2, 4]
    keep_until(file, 2)
    assert [row["step"] for row in read_samples(file)] == [0, 2]
    keep_until(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()
