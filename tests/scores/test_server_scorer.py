"""Scores by a server with the route /pooling of vLLM."""

import pytest

from model_server import ModelServer, models
from simpo_trainer.answers import server as server_module
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import AnnotateSettings
from simpo_trainer.scores.server_scorer import ServerScorer
from toy import assistant, user


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(server_module, "FIRST_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def scorer_at(url, **settings):
    return ServerScorer(AnnotateSettings(server=url, **settings))


def pooled(data):
    return {"object": "list", "data": [{"index": 0, "object": "pooling", "data": data}]}


def serve(score):
    """A server that scores the text of the last message by a function."""

    def answer(asked):
        if asked.method == "GET":
            return models("reward", "other")
        found = score(asked.body["messages"][-1]["content"])
        return found if isinstance(found, tuple | dict) else pooled(found)

    return ModelServer(answer)


def row(key, *answers, **columns):
    return {"key": key, "prompt": [user(f"prompt {key}")], "answers": list(answers), **columns}


def by_key(scorer, rows):
    return {scored["key"]: scores for group in scorer.scores(rows) for scored, scores in group}


@pytest.mark.parametrize("ending", ["/v1", "/v1/", "", "/"])
def test_each_answer_gets_its_score_at_the_route_beside_v1(ending):
    with serve(lambda text: [len(text)]) as fake:
        scorer = scorer_at(fake.host + ending)
        assert by_key(scorer, [row("a", "x", "xxx", "xx"), row("b", "x"), row("c")]) == {
            "a": [1.0, 3.0, 2.0],
            "b": [1.0],
            "c": [],
        }
    assert {asked.path for asked in fake.asked} == {"/v1/models", "/pooling"}
    assert scorer.identity == {"scorer": "server", "model": "reward"}


def test_what_is_asked(caplog):
    arguments = {"tools": [{"type": "function"}], "chat_template_kwargs": {"think": True}}
    with serve(lambda text: 0.5) as fake:
        by_key(scorer_at(fake.url, server_model="other"), [row("a", "text", **arguments)])
    assert fake.bodies("/pooling") == [
        {
            "model": "other",
            "messages": [user("prompt a"), assistant("text")],
            "task": "classify",
            "use_activation": False,
            **arguments,
        }
    ]
    assert "scores without them" in caplog.text


@pytest.mark.parametrize("data", [1.5, [1.5], [[1.5]]])
def test_a_number_may_be_nested(data):
    with serve(lambda text: data) as fake:
        assert by_key(scorer_at(fake.url), [row("a", "x")]) == {"a": [1.5]}


@pytest.mark.parametrize("data", [float("nan"), [float("inf")], None, [None]])
def test_what_is_no_number_is_no_score_and_names_the_row(caplog, data):
    with serve(lambda text: data if text == "bad" else [2]) as fake:
        assert by_key(scorer_at(fake.url), [row("a", "good", "bad")]) == {"a": [2.0, None]}
    assert "Answer 2 of the row a gets no score" in caplog.text


@pytest.mark.parametrize(
    ("data", "told"),
    [([1, 2], "2 numbers"), ([[1], [2], [3]], "3 numbers"), ("AAA=", "str"), ([], "0 numbers"), (True, "bool")],
)
def test_several_numbers_are_no_score(data, told):
    with serve(lambda text: data) as fake:
        with pytest.raises(SimPOError, match=f"/pooling gave {told} for an answer; a score is one number"):
            by_key(scorer_at(fake.url), [row("a", "x")])


def test_another_reply_is_told():
    with serve(lambda text: {"scores": [1]}) as fake:
        with pytest.raises(SimPOError, match="answered without data"):
            by_key(scorer_at(fake.url), [row("a", "x")])


def test_an_answer_that_the_server_refuses_has_no_score(caplog):
    def score(text):
        return (400, {"message": "too long"}, {}) if text == "long" else [1]

    with serve(score) as fake:
        scorer = scorer_at(fake.url)
        assert by_key(scorer, [row("a", "x", "long", "x")]) == {"a": [1.0, None, 1.0]}
    assert scorer.unscored == 1 and "too long" in caplog.text


def test_a_server_that_refuses_all_answers_ends_the_work():
    with serve(lambda text: (400, {"message": "Unsupported task"}, {})) as fake:
        with pytest.raises(SimPOError, match="Unsupported task"):
            by_key(scorer_at(fake.url, server_requests=2), [row("a", *["x"] * 100)])
    assert len(fake.asked) <= 25


def test_a_server_without_the_route_ends_the_work():
    with serve(lambda text: (404, {"detail": "Not Found"}, {})) as fake:
        with pytest.raises(SimPOError, match="HTTP 404.*Not Found"):
            by_key(scorer_at(fake.url), [row("a", "x")])


def test_a_model_that_is_not_listed_is_told():
    with serve(lambda text: 1) as fake:
        with pytest.raises(SimPOError, match="no model 'rewart'; it lists reward, other. Did you mean reward"):
            scorer_at(fake.url, server_model="rewart")


def test_a_server_without_a_list_needs_the_name():
    with ModelServer(lambda asked: (404, "", {}) if asked.method == "GET" else pooled([3])) as fake:
        with pytest.raises(SimPOError, match="lists no models. Name"):
            scorer_at(fake.url)
        assert by_key(scorer_at(fake.url, server_model="mine"), [row("a", "x")]) == {"a": [3.0]}


def test_a_server_that_is_down_is_told_before_the_work():
    with serve(lambda text: 1) as fake:
        pass
    with pytest.raises(SimPOError, match="cannot be reached"):
        scorer_at(fake.url)


def test_no_server_is_told():
    with pytest.raises(SimPOError, match="Give its address"):
        ServerScorer(AnnotateSettings())
