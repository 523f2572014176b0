"""Rounds with stand-ins for their stages: order, going on, patience, seeds, adapters, and mistakes found early."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from answering import read_lines, write_chat_model, write_lines
from simpo_trainer.answers.card import write_card
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import GenerateSettings, IterateSettings, read_section
from simpo_trainer.recipe.load import check_recipe, load_recipe
from simpo_trainer.record.seal import seal_checkpoint
from simpo_trainer.rounds import iteration
from simpo_trainer.rounds.files import RoundFiles
from simpo_trainer.rounds.iteration import StageEnded, iterate
from simpo_trainer.rounds.stages import Stages, shown

RECIPE = """
model_name_or_path: {folder}/model
dataset_name: {folder}/prompts.jsonl
test_split_size: 3
output_dir: {folder}/rounds
annotate: {{score: '{folder}/rules.py:score'}}
"""
FIRST = ["generate", "annotate", "generate", "annotate"]
ROUND = ["generate", "annotate", "train", "generate", "annotate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def recipe(tmp_path, model):
    (tmp_path / "model").symlink_to(model)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Count to {i}", "number": i} for i in range(10)])
    (tmp_path / "rules.py").write_text("def score(prompt, answer, row):\n    return len(answer)\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """The numbers of rounds of each picture that was asked for; drawing takes long, and has its own test."""
    asked = []
    monkeypatch.setattr(iteration, "rounds_picture", lambda facts, best, path: asked.append(len(facts)))
    return asked


def change(recipe, old, new):
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


class StandIn:
    """Runs stages that write what a real one would leave; `scores` are those of the start and of each round.

    Args:
        failing: the number of the stage that ends with `status` and leaves nothing.
    """

    def __init__(self, *scores, failing=None, status=1):
        self.scores, self.failing, self.status = scores, failing, status
        self.words = []

    def __call__(self, words):
        self.words.append(list(words))
        if len(self.words) - 1 == self.failing:
            return self.status
        given = dict(word[2:].split("=", 1) for word in words if "=" in word)
        output = Path(given.get("output") or given["output_dir"])
        output.parent.mkdir(parents=True, exist_ok=True)
        if words[0] == "train":
            output.mkdir()
            (output / "run_manifest.json").write_text("{}")
            seal_checkpoint(output, {"finished": True}, [])
        elif words[0] == "generate":
            prompts = read_lines(Path(given["dataset_name"]))
            write_lines(output, [_answered(row, str(output)) for row in prompts])
        elif "pairs" in given:
            rows = read_lines(Path(words[1]))
            number = 0 if output.parent.name == "start" else int(output.parent.name.removeprefix("round-"))
            write_lines(output, [{**row, "scores": [self.scores[number] + i]} for i, row in enumerate(rows)])
        else:
            write_card(output, {"selected": {"rows": 5, "prompts_left_out": {"all answers tie": 2}}})
            write_lines(output, [{}])
        return 0

    @property
    def verbs(self):
        return [words[0] for words in self.words]


def _answered(row, key):
    return {
        "key": f"{key}{row['prompt']}",
        "prompt": row["prompt"],
        "answers": ["a b c d a b c d"],
        "finish_reasons": ["length"],
        "token_counts": [8],
    }


def make(recipe, stand_in, launching=(), overrides=(), **settings):
    console = Console(file=io.StringIO(), width=200)
    return iterate(
        check_recipe(recipe, overrides), IterateSettings(**settings), launching, run=stand_in, console=console
    )


def results(recipe):
    return json.loads((recipe.parent / "rounds" / "rounds.json").read_text())


def given_to(stand_in, verb):
    return [
        dict(word[2:].split("=", 1) for word in words if "=" in word) for words in stand_in.words if words[0] == verb
    ]


def test_each_round_begins_with_the_model_of_the_last(recipe, tmp_path, pictures):
    stand_in = StandIn(0.0, 1.0, 2.0)
    facts = make(recipe, stand_in, ["--launcher", "ddp"], rounds=2)
    assert stand_in.verbs == [*FIRST, *ROUND, *ROUND]
    first, second = [str(RoundFiles(tmp_path / "rounds", number).model) for number in (1, 2)]
    models = [given.get("model_name_or_path") for given in given_to(stand_in, "generate")]
    assert models == [None, None, None, first, first, second]
    trained = given_to(stand_in, "train")
    assert [given.get("model_name_or_path") for given in trained] == [None, first]
    assert [given["output_dir"] for given in trained] == [first, second]
    held_out = str(tmp_path / "rounds" / "start" / "held-out-pairs.jsonl")
    assert {given["eval_dataset_name"] for given in trained} == {held_out}
    assert [given.get("eval_strategy") for given in trained] == ["epoch", None]
    assert all(given["test_split_size"] == "null" and given["resume_from_checkpoint"] == "auto" for given in trained)
    assert [words[2:4] for words in stand_in.words if words[0] == "train"] == [["--launcher", "ddp"]] * 2
    for words in stand_in.words:
        if words[0] != "annotate":
            load_recipe(words[1], [word for word in words[2:] if word.split("=")[0] in _keys_of(words)])
    assert [each.held_out_score for each in facts] == [1.0, 2.0, 3.0]  # three prompts: score + 0, + 1, + 2
    assert (facts[2].change, facts[2].rose, facts[2].cut_off, facts[2].answer_tokens) == (2.0, 1.0, 1.0, 8)
    assert (facts[2].rows_trained_on, facts[2].prompts_without_rows) == (5, 2)
    assert results(recipe)["best"] == {"round": 2, "model": "round-2/model", "held_out_score": 3.0}
    assert len((tmp_path / "rounds" / "rounds.csv").read_text().splitlines()) == 4
    assert pictures == [1, 2, 3]


def _keys_of(words):
    own = {"--output", "--seeds", "--temperature", "--num_answers", "--engine"} if words[0] == "generate" else set()
    return {word.split("=")[0] for word in words if word.startswith("--") and "=" in word} - own


def test_no_two_rounds_share_a_seed(recipe):
    change(recipe, "annotate:", "generate: {seeds: [3, 50, 7], num_answers: 4}\nannotate:")
    stand_in = StandIn(*range(6))
    make(recipe, stand_in, rounds=5)
    sampled = [json.loads(given["seeds"]) for given in given_to(stand_in, "generate") if "seeds" in given]
    assert (
        sampled[1] != sampled[0] == read_section(GenerateSettings, {"seeds": [3, 50, 7], "num_answers": 4}).used_seeds
    )
    seeds = [seed for each in sampled for seed in each]
    assert len(sampled) == 6 and len(set(seeds)) == len(seeds) == 24


def test_held_out_prompts_are_never_answered_for_training(recipe, tmp_path):
    stand_in = StandIn(0.0, 1.0)
    make(recipe, stand_in, rounds=1)
    asked = [given["dataset_name"] for given in given_to(stand_in, "generate")]
    train, held_out = (tmp_path / "rounds" / "start" / name for name in ("prompts.jsonl", "held-out-prompts.jsonl"))
    assert asked == [str(held_out), str(held_out), str(train), str(held_out)]
    numbers = [{row["number"] for row in read_lines(path)} for path in (train, held_out)]
    assert [len(each) for each in numbers] == [7, 3] and numbers[0] | numbers[1] == set(range(10))
    # The order of the rows decides nothing.
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Count to {i}", "number": i} for i in reversed(range(10))])
    make(recipe, StandIn(), rounds=1)


def test_a_prompt_on_both_sides_is_not_trained_on(recipe, tmp_path, caplog):
    write_lines(tmp_path / "test.jsonl", [{"prompt": f"Count to {i}"} for i in (2, 5, 20)])
    change(recipe, "test_split_size: 3", f"eval_dataset_name: {tmp_path / 'test.jsonl'}")
    make(recipe, StandIn(0.0, 1.0), rounds=1)
    assert {row["number"] for row in read_lines(tmp_path / "rounds" / "start" / "prompts.jsonl")} == {*range(10)} - {
        2,
        5,
    }
    assert "2 prompts to train on are held out too" in caplog.text


@pytest.mark.parametrize("failing", range(len(FIRST) + len(ROUND)))
def test_it_goes_on_at_every_boundary(recipe, failing):
    stages = [*FIRST, *ROUND]
    stand_in = StandIn(0.0, 1.0, failing=failing)
    with pytest.raises(StageEnded) as ended:
        make(recipe, stand_in, rounds=1)
    assert ended.value.status == 1 and stand_in.verbs == stages[: failing + 1]
    again = StandIn(0.0, 1.0)
    facts = make(recipe, again, rounds=1)
    assert again.verbs == stages[failing:] and len(facts) == 2
    nothing = StandIn()
    make(recipe, nothing, rounds=1)
    assert not nothing.verbs
    more = StandIn(0.0, 1.0, 2.0)
    make(recipe, more, rounds=2)
    assert more.verbs == ROUND


def test_a_run_that_is_not_finished_is_no_model(recipe, tmp_path):
    with pytest.raises(StageEnded):
        make(recipe, StandIn(0.0, 1.0, failing=6), rounds=1)
    (tmp_path / "rounds" / "round-1" / "model").mkdir()

    def no_model(words):
        assert words[0] == "train"
        return 0

    with pytest.raises(SimPOError, match="`simpo train` has ended, but .*model is not there"):
        make(recipe, no_model, rounds=1)


def test_a_stop_is_told_from_a_failure(recipe, caplog):
    with pytest.raises(StageEnded) as ended:
        make(recipe, StandIn(failing=0, status=130))
    assert ended.value.status == 130 and "Stopped. What was finished is kept: the same command goes on" in caplog.text
    caplog.clear()
    with pytest.raises(StageEnded):
        make(recipe, StandIn(failing=0, status=137))
    assert "`simpo generate` was killed" in caplog.text and "the same command goes on" in caplog.text


@pytest.mark.parametrize(
    ("scores", "patience", "made", "best"),
    [
        ((1, 2, 1.5, 3), 1, 2, 1),
        ((1, 2, 1.5, 3), 2, 3, 3),
        ((1, 2, 2, 2), 1, 3, 1),  # as good is not worse
        ((1, 0.5, 0.4, 3), 2, 2, 0),
    ],
)
def test_it_stops_when_rounds_get_worse(recipe, caplog, scores, patience, made, best):
    facts = make(recipe, StandIn(*scores), rounds=3, patience=patience)
    assert len(facts) == made + 1
    assert results(recipe)["best"]["round"] == best
    assert ("No other round is begun" in caplog.text) == (made < 3)
    assert (f"The best is round {best}" if best else "No round has a higher held-out score") in caplog.text


def test_an_adapter_trains_on_at_its_rate(recipe, tmp_path):
    change(recipe, "annotate:", "use_peft: true\nlora_r: 4\nannotate:")
    stand_in = StandIn(0.0, 1.0, 2.0)
    make(recipe, stand_in, rounds=2)
    first, second = given_to(stand_in, "train")
    assert "use_peft" not in first and second["use_peft"] == "false"
    assert {given["engine"] for given in given_to(stand_in, "generate")} == {"transformers"}
    folder = Path(second["model_name_or_path"])
    (folder / "adapter_config.json").write_text("{}")
    rates = [load_recipe(words[1], words[2:]).training.learning_rate for words in stand_in.words if words[0] == "train"]
    assert rates[0] == rates[1] == pytest.approx(5e-6)


def test_tools_and_arguments_of_the_template_reach_the_stages(recipe, tmp_path):
    tools = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
    rows = [{"prompt": f"Count to {i}", "tools": json.dumps(tools)} for i in range(4)]
    write_lines(tmp_path / "prompts.jsonl", rows)
    make(recipe, StandIn(0.0, 1.0), rounds=1)
    written = read_lines(tmp_path / "rounds" / "start" / "prompts.jsonl")
    assert json.loads(written[0]["tools"]) == tools


def test_a_place_of_the_first_model_is_not_that_of_the_next(recipe, tmp_path):
    change(recipe, "annotate:", "model_init_kwargs: {subfolder: small, attn_implementation: eager}\nannotate:")
    files = RoundFiles(tmp_path / "rounds", 2)
    words = Stages(check_recipe(recipe)).train(files)
    assert '--model_init_kwargs={"attn_implementation": "eager"}' in words
    assert not any("model_init_kwargs" in word for word in Stages(check_recipe(recipe)).sample(RoundFiles(tmp_path, 1)))


def test_no_secret_is_shown(recipe):
    words = Stages(check_recipe(recipe, ["--hub_token", "hf_" + "a" * 30])).train(RoundFiles(Path("x"), 1))
    assert any("hf_" in word for word in words)
    assert "hf_" not in shown(words) and '--hub_token="$HF_TOKEN"' in shown(words)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test_split_size: 3", "", "no held-out prompts.*Set test_split_size: 0.1"),
        ("test_split_size: 3", "test_split_size: 10", "takes 10 of 10 prompts, which leaves none"),
        ("annotate: {", "annotate: {}\nnothing: {", "unknown key nothing"),
        ("annotate:", "#", "no section annotate"),
        ("score: ", "pairs: all, reward_mode: ", "unknown key reward_mode"),
        ("score: ", "pairs: all} #", "No scorer is given"),
        ("score: ", "ranker: ", "a single answer has no score"),
        ("score: ", "pairs: none, score: ", "nothing to train on"),
        ("rules.py:score", "rules.py:scroe", "Did you mean score"),
        ("annotate:", "generate: {server: 'http://localhost:1'}\nannotate:", "answer with the same model"),
        ("annotate:", "generate: {num_answers: 1}\nannotate:", "a pair needs two"),
        ("annotate:", "generate: {engine: vllm}\nuse_peft: true\nannotate:", "whole models"),
        ("annotate:", "use_peft: true\nload_in_4bit: true\nannotate:", "set rounds: 1"),
        ("annotate:", "push_to_hub: true\nannotate:", "push_to_hub: false"),
    ],
)
def test_a_mistake_is_found_before_the_first_stage(recipe, old, new, message):
    change(recipe, old, new)
    stand_in = StandIn()
    with pytest.raises(SimPOError, match=message):
        make(recipe, stand_in)
    assert not stand_in.words


def test_the_folder_of_another_recipe_is_refused(recipe, tmp_path):
    make(recipe, StandIn(0.0, 1.0), rounds=1)
    with pytest.raises(SimPOError, match="begun with other settings: beta null there, 3.0 here"):
        make(recipe, StandIn(), overrides=["--beta", "3"])
    make(recipe, StandIn(), overrides=["--logging_steps", "3"], rounds=1)  # changes nothing of the result
    (tmp_path / "rules.py").write_text("def score(prompt, answer, row):\n    return -len(answer)\n")
    with pytest.raises(SimPOError, match="begun with other settings: the scorer"):
        make(recipe, StandIn(), rounds=1)


def test_the_folder_of_a_run_is_refused(recipe, tmp_path):
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "run_manifest.json").write_text("{}")
    with pytest.raises(SimPOError, match="holds a run of `simpo train`"):
        make(recipe, StandIn())
