"""`simpo generate`: files that depend on prompts, settings, seeds and model alone, and go on where they were."""

import errno
import os
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from answering import answering_recipe, prompts, read_lines, write_chat_model
from simpo_trainer import SimPOError
from simpo_trainer.answers.card import read_card
from simpo_trainer.answers.generation import generate
from simpo_trainer.answers.transformers_engine import TransformersEngine
from simpo_trainer.recipe.answer_keys import GenerateSettings

ROWS = prompts(12)


def settings(**given):
    return GenerateSettings(**{"max_new_tokens": 6, "seeds": [13, 21], "batch_size": 6, **given})


@pytest.fixture
def batches(monkeypatch):
    """The number of batches that were generated."""
    made = []
    whole = TransformersEngine._answered

    def answered(self, group):
        made.append(len(group))
        return whole(self, group)

    monkeypatch.setattr(TransformersEngine, "_answered", answered)
    return made


def test_a_row_for_each_prompt_with_its_columns(tmp_path):
    file = generate(answering_recipe(tmp_path, ROWS), settings())
    rows = read_lines(file)
    assert {row["prompt"][0]["content"] for row in rows} == {row["prompt"] for row in ROWS}
    assert {row["number"] for row in rows} == set(range(12))
    for row in rows:
        assert len(row["answers"]) == len(row["finish_reasons"]) == len(row["token_counts"]) == 2
        assert row["seeds"] == [13, 21]
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    assert file.name.startswith("run-answers-") and not list(tmp_path.glob("*.partial"))
    facts = read_card(file)["generated"]
    assert (facts["prompts"], facts["answers"], facts["rows read"]) == (12, 24, 12)
    counts = [count for row in rows for count in row["token_counts"]]
    cut = [reason for row in rows for reason in row["finish_reasons"]].count("length")
    assert facts["tokens of answers"]["all"] == sum(counts)
    assert facts["share cut off"] == pytest.approx(cut / 24, abs=1e-4)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_shuffled_prompts_give_the_same_bytes(tmp_path, ending):
    first = generate(answering_recipe(tmp_path, ROWS), settings(output=str(tmp_path / f"a{ending}")))
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    second = generate(answering_recipe(tmp_path, shuffled), settings(output=str(tmp_path / f"b{ending}")))
    assert first.read_bytes() == second.read_bytes()


def test_the_same_command_again_makes_nothing(tmp_path, batches, caplog):
    recipe = answering_recipe(tmp_path, ROWS)
    file = generate(recipe, settings())
    assert batches == [3, 3, 3, 3]
    before = file.read_bytes()
    assert generate(recipe, settings()) == file and file.read_bytes() == before
    assert len(batches) == 4
    assert "is complete, with 12 prompts. Nothing is left to do." in caplog.text


def test_a_changed_setting_starts_another_file(tmp_path, batches):
    recipe = answering_recipe(tmp_path, ROWS)
    write_chat_model(tmp_path / "other", seed=1)
    changes = ({}, {"top_p": 0.5}, {"seeds": [13]}, {"max_new_tokens": 7})
    files = {generate(recipe, settings(**given)) for given in changes}
    files.add(generate(answering_recipe(tmp_path, ROWS[:11]), settings()))
    files.add(generate(answering_recipe(tmp_path, ROWS, model_name_or_path=str(tmp_path / "other")), settings()))
    files.add(generate(answering_recipe(tmp_path, ROWS, system_messages="drop"), settings()))
    assert len(files) == 7
    count = len(batches)
    assert generate(answering_recipe(tmp_path, ROWS), settings(batch_size=2)) in files and len(batches) == count


def test_an_error_in_the_middle_keeps_what_is_done(tmp_path, monkeypatch, batches):
    recipe = answering_recipe(tmp_path, ROWS)
    expected = generate(recipe, settings(output=str(tmp_path / "a.jsonl"))).read_bytes()
    whole = TransformersEngine._answered
    left = [2]

    def fails(self, group):
        left[0] -= 1
        if left[0] < 0:
            raise SimPOError("broken")
        return whole(self, group)

    again = settings(output=str(tmp_path / "b.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "_answered", fails)
        with pytest.raises(SimPOError, match="broken"):
            generate(recipe, again)
    assert not (tmp_path / "b.jsonl").exists()
    del batches[:]
    assert generate(recipe, again).read_bytes() == expected
    assert batches == [3, 3]


def test_a_full_disk_at_any_write_loses_nothing(tmp_path, monkeypatch, batches):
    recipe = answering_recipe(tmp_path, ROWS)
    expected = generate(recipe, settings(output=str(tmp_path / "a.jsonl"))).read_bytes()
    again, fsync, failures = settings(output=str(tmp_path / "b.jsonl")), os.fsync, 0
    del batches[:]
    for _ in range(20):
        room = [2]

        def full(number, room=room):
            room[0] -= 1
            if room[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(number)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                generate(recipe, again)
                break
            except SimPOError as error:
                assert "the disk is full" in str(error)
                failures += 1
    assert (tmp_path / "b.jsonl").read_bytes() == expected
    assert failures == 2
    assert len(batches) - failures <= 4  # a batch that could not be written is made again, and no other


def test_an_output_of_another_run_is_refused_before_the_work(tmp_path, batches):
    recipe, file = answering_recipe(tmp_path, ROWS), tmp_path / "a.jsonl"
    file.write_text("mine\n")
    with pytest.raises(SimPOError, match="is there already, and no data card"):
        generate(recipe, settings(output=str(file)))
    assert file.read_text() == "mine\n"
    file.unlink()
    generate(recipe, settings(output=str(file)))
    count = len(batches)
    with pytest.raises(SimPOError, match=r"other settings: temperature 0.8 there, 0.7 here"):
        generate(recipe, settings(output=str(file), temperature=0.7))
    assert len(batches) == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "a.txt"}, "must end in .jsonl or .parquet"),
        ({"temperature": 0.0}, "gives the same answer 2 times. Set num_answers: 1"),
        ({"engine": "vllm"}, "vLLM is not installed"),
        ({"engine": "server"}, "its address is missing"),
        ({"engine": "transformers", "server": "http://localhost:1/v1"}, "Remove one of them"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, given, message):
    with pytest.raises(SimPOError, match=message):
        generate(answering_recipe(tmp_path, ROWS), settings(**given))


def test_a_model_without_a_template_is_refused(tmp_path):
    write_chat_model(tmp_path / "model", template="")
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        generate(answering_recipe(tmp_path, ROWS), settings())


def test_prompts_that_the_template_refuses_or_that_are_too_long_are_left_out(tmp_path, caplog):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    write_chat_model(tmp_path / "model", template=template, max_position_embeddings=64)
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    rows = [*({"prompt": [{"role": "user", "content": text}]} for text in ("a", "b" * 80)), {"prompt": system}]
    file = generate(answering_recipe(tmp_path, rows), settings())
    assert len(read_lines(file)) == 1
    left_out = read_card(file)["generated"]["left out"]
    assert left_out == {"refused by the chat template": 1, "longer than the positions of the model": 1}
    assert "system_messages: merge or drop" in caplog.text
    with pytest.raises(SimPOError, match="No prompt can be answered"):
        generate(answering_recipe(tmp_path, rows[1:]), settings())


def test_the_global_generator_is_not_used(tmp_path):
    recipe = answering_recipe(tmp_path, ROWS)
    before = torch.get_rng_state()
    generate(recipe, settings())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_an_adapter_answers(tmp_path, task):
    """With its base; what tells one model from another is both."""
    recipe = answering_recipe(tmp_path, ROWS)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = get_peft_model(
        base, LoraConfig(r=2, task_type=task, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "adapter")
    plain = generate(recipe, settings())
    file = generate(answering_recipe(tmp_path, ROWS, model_name_or_path=str(tmp_path / "adapter")), settings())
    assert [row["answers"] for row in read_lines(file)] != [row["answers"] for row in read_lines(plain)]
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "merged")
    whole = generate(answering_recipe(tmp_path, ROWS, model_name_or_path=str(tmp_path / "merged")), settings())
    by_prompt = [{row["number"]: row["answers"] for row in read_lines(each)} for each in (file, whole)]
    assert by_prompt[0] == by_prompt[1]
    prints = [read_card(each)["generated"]["identity"]["model"] for each in (plain, file, whole)]
    assert len(set(prints)) == 3 and prints[1].endswith("+" + prints[0])
