"""The scorer that is a reward model: which models it takes, and the scores that it reads."""

import json

import pytest
import torch
import transformers.dynamic_module_utils
from transformers import LlamaConfig, LlamaForSequenceClassification

from answer_files import answer_row, write_answers
from logs import warnings
from models import tiny_model
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import AnnotateSettings
from simpo_trainer.scores import reward_scorer
from simpo_trainer.scores.annotation import annotate
from simpo_trainer.scores.reward_scorer import RewardScorer
from toy import CHATML, assistant, toy_tokenizer, user

SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 200,
}


def reward_model(seed=0, **config):
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**{**SIZES, "pad_token_id": None, "num_labels": 1, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that scores differ
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model without a padding token."""
    folder = tmp_path_factory.mktemp("reward")
    reward_model().save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return folder


def settings(folder, **given):
    return AnnotateSettings(reward_model=str(folder), **given)


def scores(folder, rows, **given):
    """Returns the scores of rows by their keys."""
    return {
        row["key"]: scores for group in RewardScorer(settings(folder, **given)).scores(rows) for row, scores in group
    }


def alone(model, row, answer):
    """The score of one conversation, without a batch."""
    ids = toy_tokenizer().apply_chat_template(
        [*row["prompt"], assistant(answer)], tools=row.get("tools"), tokenize=True, return_dict=False
    )
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


ROWS = [answer_row(number) for number in range(7)]


# --- The scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("pad", [None, 5])
def test_scores_are_those_of_each_conversation_alone(tmp_path, batch_size, pad):
    model = reward_model(pad_token_id=pad).eval()
    found = scores(save(tmp_path, model), ROWS, batch_size=batch_size)
    model.config.pad_token_id = None
    expected = {row["key"]: [alone(model, row, answer) for answer in row["answers"]] for row in ROWS}
    assert len({round(score, 3) for own in expected.values() for score in own}) > 20
    for key, own in expected.items():
        assert found[key] == pytest.approx(own, abs=1e-5)


def test_tools_are_given_to_the_template(tmp_path):
    template = "{{ tools | length if tools else 'none' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save(tmp_path, reward_model(), toy_tokenizer(template))
    tools = [{"type": "function", "function": {"name": "add"}}]
    plain, listed, text = (
        scores(tmp_path, [answer_row(1, **columns)]) for columns in ({}, {"tools": tools}, {"tools": json.dumps(tools)})
    )
    assert listed == text != plain


def test_too_long_conversations_have_no_score(folder, caplog):
    rows = [answer_row(1, ["short", "long " * 300]), answer_row(2, ["short", "shorter"])]
    found = scores(folder, rows)
    assert [[score is None for score in found[row["key"]]] for row in rows] == [[False, True], [False, False]]
    assert "tokens with its prompt; at most 200 are read" in warnings(caplog)[0]
    limited = scores(folder, rows, max_length=10)
    assert all(score is None for own in limited.values() for score in own)


def test_a_conversation_that_the_template_refuses_has_no_score(tmp_path, caplog):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    save(tmp_path, reward_model(), toy_tokenizer(refusal + CHATML))
    refused = answer_row(1) | {"prompt": [{"role": "system", "content": "s"}, user("u")]}
    found = scores(tmp_path, [refused, answer_row(2)])
    assert found[refused["key"]] == [None] * 4
    assert None not in found[answer_row(2)["key"]]
    assert "its chat template refuses it (no system)" in warnings(caplog)[0]


def test_the_identity_follows_the_weights_and_names_no_folder(tmp_path):
    identities = []
    for seed in (0, 0, 1):
        own = tmp_path / f"{len(identities)}" / "model"
        own.parent.mkdir()
        identities.append(RewardScorer(settings(save(own, reward_model(seed)))).identity)
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["name"] == "local folder 'model'"


def test_a_memory_that_does_not_suffice_is_told(folder, monkeypatch):
    scorer = RewardScorer(settings(folder))

    def full(**inputs):
        raise torch.OutOfMemoryError("out of memory")

    model = reward_model()
    monkeypatch.setattr(model, "forward", full)
    monkeypatch.setattr(reward_scorer, "_load_model", lambda *args: model)
    with pytest.raises(SimPOError, match="Lower batch_size"):
        list(scorer.scores(ROWS))


# --- Models that cannot be used ---------------------------------------------------------------------------------------


def test_a_language_model_is_no_reward_model(tmp_path):
    with pytest.raises(SimPOError, match="holds a LlamaForCausalLM, a language model without a head for scores"):
        RewardScorer(settings(save(tmp_path, tiny_model())))


def test_a_head_that_is_missing_is_an_error(tmp_path):
    tiny_model(**SIZES).save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SimPOError, match=r"lacks 1 of its weights \(score.weight\), which would be random"):
        list(RewardScorer(settings(tmp_path)).scores(ROWS))


def test_several_labels_are_an_error(tmp_path):
    save(tmp_path, reward_model(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, num_labels=2))
    with pytest.raises(SimPOError, match=r"a classifier with 2 labels \(bad, good\); a reward model has one"):
        RewardScorer(settings(tmp_path))


def test_no_chat_template_is_an_error(tmp_path):
    save(tmp_path, reward_model(), toy_tokenizer(None))
    with pytest.raises(SimPOError, match="has no chat template"):
        RewardScorer(settings(tmp_path))


def test_more_tokens_than_positions_are_an_error(folder):
    with pytest.raises(SimPOError, match="max_length is 300, but .* has 200 positions"):
        RewardScorer(settings(folder, max_length=300))


def test_names_of_nothing_are_errors(tmp_path):
    with pytest.raises(SimPOError, match="does not exist or is not a folder. Correct reward_model"):
        RewardScorer(settings(tmp_path / "none"))
    with pytest.raises(SimPOError, match="holds no config.json"):
        RewardScorer(settings(tmp_path))
    with pytest.raises(SimPOError, match="'org/none' could not be loaded: .* reward_model must be"):
        RewardScorer(settings("org/none"))


def test_a_folder_has_no_revision(folder):
    with pytest.raises(SimPOError, match="is a folder here, which has none"):
        RewardScorer(settings(folder, reward_revision="main"))


# --- Models that bring code -------------------------------------------------------------------------------------------

CODE = """
from dataclasses import dataclass
import pathlib
import torch
from transformers import LlamaForSequenceClassification
from transformers.utils import ModelOutput
pathlib.Path(__file__).with_name("ran").touch()

@dataclass
class Rated(ModelOutput):
    logits: torch.Tensor = None
    score: torch.Tensor = None

class Rater(LlamaForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        length = attention_mask.sum(-1).float()
        return Rated(logits=torch.zeros(len(input_ids), 3), score=length FIELD)
"""


@pytest.fixture
def coded(tmp_path, monkeypatch):
    """Makes a folder with a model of three labels whose own code gives a score: the tokens that it read."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def make(field="", module="rater"):
        folder = save(tmp_path / f"model-{module}", reward_model(num_labels=3))
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForSequenceClassification": f"{module}.Rater"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "rater.py").write_text(CODE.replace("FIELD", field))
        return folder

    return make


def ran(tmp_path):
    return list(tmp_path.rglob("ran"))


def test_code_does_not_run_unless_it_is_trusted(coded, tmp_path):
    folder = coded()
    for trusted in (None, "other"):
        with pytest.raises(
            SimPOError, match=r"brings Python code .*to run it, set trust_remote_code: \S+model-rater\.$"
        ):
            RewardScorer(settings(folder, trust_remote_code=trusted))
    assert not ran(tmp_path)


def test_the_score_of_trusted_code_is_used(coded, tmp_path):
    folder = coded()
    found = scores(folder, ROWS, trust_remote_code=str(folder), batch_size=3)
    tokenizer = toy_tokenizer()
    for row in ROWS:
        assert found[row["key"]] == [
            len(tokenizer.apply_chat_template([*row["prompt"], assistant(answer)], return_dict=False))
            for answer in row["answers"]
        ]
    assert ran(tmp_path)


def test_trusted_code_without_one_number_is_an_error(coded):
    folder = coded(field="* 0 if False else None")
    with pytest.raises(SimPOError, match="gives 3 numbers for an answer and no `score`"):
        scores(folder, ROWS, trust_remote_code=str(folder))


def test_code_of_another_repository_is_refused(coded):
    folder = coded(module="org/other--rater")
    with pytest.raises(SimPOError, match=r"takes its code from another repository \(org/other\)"):
        RewardScorer(settings(folder, trust_remote_code=str(folder)))


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_code_of_the_hub_needs_a_commit(monkeypatch, revision):
    written = {"auto_map": {"AutoModelForSequenceClassification": "rater.Rater"}, "model_type": "llama"}
    monkeypatch.setattr(
        "simpo_trainer.scores.reward_files.PretrainedConfig.get_config_dict", lambda *args, **kwargs: (written, {})
    )
    with pytest.raises(SimPOError, match="trust_remote_code: org/rm, and reward_revision: COMMIT, the 40 hex digits"):
        RewardScorer(settings("org/rm", trust_remote_code="org/rm", reward_revision=revision))


# --- In the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_call_that_was_stopped_goes_on_with_the_same_batches(tmp_path, folder, monkeypatch, groups):
    monkeypatch.setattr(reward_scorer, "_BATCHES", 2)
    rows = [answer_row(number, [f"{number} " * seed for seed in range(1, 4)]) for number in range(12)]
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_answers(tmp_path / name / "a.jsonl", rows)
    annotate(tmp_path / "whole" / "a.jsonl", settings(folder, batch_size=4))
    read, real, seen = [], RewardScorer._read, []

    def stopping(self, ids):
        if len(read) == 3 * groups + 1:
            raise RuntimeError("stopped")
        read.append(ids)
        return real(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(RewardScorer, "_read", stopping)
        with pytest.raises(RuntimeError):
            annotate(tmp_path / "stopped" / "a.jsonl", settings(folder, batch_size=4))
    monkeypatch.setattr(RewardScorer, "_read", lambda self, ids: seen.append(ids) or real(self, ids))
    annotate(tmp_path / "stopped" / "a.jsonl", settings(folder, batch_size=4))
    assert len(seen) == 12 - 3 * groups  # of 9 answers a group, in batches of 4, 4 and 1
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
