"""Answers by a server: what it is asked, the order of what comes, and the prompts that it refuses."""

import time

import pytest

from model_server import ModelServer, completion, models
from simpo_trainer.answers import server as server_module
from simpo_trainer.answers.requests import Answer, Prompt
from simpo_trainer.answers.server_engine import ServerEngine
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import GenerateSettings
from toy import user

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(server_module, "FIRST_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def engine_at(url, **settings):
    return ServerEngine(GenerateSettings(server=url, seeds=[13, 21, 42], **settings), "org/model")


def echo(asked):
    """Answers with the prompt and the seed; the first seeds take the longest."""
    if asked.method == "GET":
        return models("org/model")
    time.sleep(0.02 if asked.body.get("seed") == 13 else 0)
    return completion(f"{asked.body['messages'][-1]['content']}-{asked.body.get('seed')}")


def prompts(count):
    return [Prompt([user(f"p{number}")]) for number in range(count)]


def test_answers_are_in_the_order_of_their_seeds_whenever_they_come():
    with ModelServer(echo) as fake:
        groups = list(engine_at(fake.url).answers(prompts(5), [False] * 5))
    assert all(len(group) == 1 for group in groups)
    texts = {group[0][0].messages[0]["content"]: [answer.text for answer in group[0][1]] for group in groups}
    assert texts == {f"p{n}": [f"p{n}-{seed}" for seed in (13, 21, 42)] for n in range(5)}
    assert all(answer.tokens == 3 and answer.finish_reason == "stop" for [(_, answers)] in groups for answer in answers)


def test_what_is_asked():
    prompt = Prompt([user("hi")], {"tools": [{"type": "function"}], "enable_thinking": False})
    with ModelServer(echo) as fake:
        engine = engine_at(fake.url, temperature=0.0, top_p=0.5, max_new_tokens=7, server_model="at/server")
        list(engine.answers([prompt, Prompt([user("done")])], [False, True]))
    bodies = sorted(fake.bodies(CHAT), key=lambda body: body["seed"])
    assert [body["seed"] for body in bodies] == [13, 21, 42]
    assert bodies[0] == {
        "model": "at/server",
        "messages": [user("hi")],
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 7,
        "seed": 13,
        "tools": [{"type": "function"}],
        "tool_choice": "none",
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_plain_prompts_bring_no_arguments_of_the_template():
    with ModelServer(echo) as fake:
        list(engine_at(fake.url).answers(prompts(1), [False]))
    assert set(fake.bodies(CHAT)[0]) == {"model", "messages", "temperature", "top_p", "max_tokens", "seed"}


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (completion(None, tokens=0), Answer("", "stop", 0)),
        (completion("cut", tokens=9, finish_reason="length"), Answer("cut", "length", 9)),
        (completion("uncounted", tokens=None), Answer("uncounted", "stop", None)),
    ],
)
def test_an_answer_is_read_as_it_comes(reply, answer):
    with ModelServer(lambda asked: reply) as fake:
        [[(_, answers)]] = engine_at(fake.url).answers(prompts(1), [False])
    assert answers == [answer] * 3


def test_no_more_requests_at_once_than_allowed():
    with ModelServer(echo) as fake:
        list(engine_at(fake.url, server_requests=2).answers(prompts(10), [False] * 10))
    assert fake.most_at_once == 2


def refuse(*bad, status=400):
    def answer(asked):
        if asked.method == "POST" and asked.body["messages"][-1]["content"] in bad:
            return status, {"error": {"message": "This model's maximum context length is 10 tokens"}}, {}
        return echo(asked)

    return answer


def test_a_prompt_that_the_server_refuses_is_left_out(caplog):
    with ModelServer(refuse("p1")) as fake:
        engine = engine_at(fake.url, server_requests=1)
        answered = [group[0][0].messages[0]["content"] for group in engine.answers(prompts(4), [False] * 4)]
    assert answered == ["p0", "p2", "p3"] and engine.left_out == 1
    assert [r.message for r in caplog.records if "left out" in r.message and "maximum context" in r.message]
    assert sum(body["messages"] == [user("p1")] for body in fake.bodies(CHAT)) <= 2


def test_the_first_refused_prompts_are_told_and_all_are_counted(caplog):
    bad = [f"p{n}" for n in range(1, 30)]
    with ModelServer(refuse(*bad)) as fake:
        engine = engine_at(fake.url, server_requests=1)
        list(engine.answers(prompts(31), [False] * 31))
    assert engine.left_out == 29
    told = [record.message for record in caplog.records]
    assert sum("A prompt is left out" in text for text in told) == 3 and "refused 29 prompts in all" in told[-1]


@pytest.mark.parametrize("count", [3, 40])
def test_a_server_that_refuses_all_prompts_ends_the_work(count):
    with ModelServer(refuse(*(f"p{n}" for n in range(count)))) as fake:
        with pytest.raises(SimPOError, match="maximum context length"):
            list(engine_at(fake.url, server_requests=2).answers(prompts(count), [False] * count))
    assert len(fake.asked) <= 70


def test_prompts_that_were_refused_before_do_not_end_the_work_that_goes_on():
    with ModelServer(refuse(*(f"p{n}" for n in range(1, 30)))) as fake:
        engine = engine_at(fake.url)
        assert not list(engine.answers(prompts(30), [True] + [False] * 29))
    assert engine.left_out == 29


@pytest.mark.parametrize("status", [401, 404])
def test_what_holds_for_every_prompt_ends_the_work_at_once(status):
    with ModelServer(refuse("p0", status=status)) as fake:
        with pytest.raises(SimPOError, match=f"HTTP {status}"):
            list(engine_at(fake.url, server_requests=1).answers(prompts(30), [False] * 30))
    assert len(fake.asked) <= 2


def test_what_is_no_chat_is_told():
    with ModelServer(lambda asked: {"hello": 1}) as fake:
        with pytest.raises(SimPOError, match="without the text of a message"):
            list(engine_at(fake.url).answers(prompts(1), [False]))


def test_check_accepts_a_model_that_is_listed_without_asking_it():
    with ModelServer(echo) as fake:
        engine_at(fake.url).check()
    assert [asked.path for asked in fake.asked] == ["/v1/models"]


def test_check_tells_that_the_server_is_down():
    with ModelServer(echo) as fake:
        pass
    with pytest.raises(SimPOError, match="cannot be reached"):
        engine_at(fake.url).check()


@pytest.mark.parametrize("status", [400, 404, 500])
def test_check_tells_a_model_that_the_server_does_not_have(status):
    def answer(asked):
        return models("org/models", "other") if asked.method == "GET" else (status, {"message": "unknown"}, {})

    with ModelServer(answer) as fake:
        with pytest.raises(SimPOError, match="does not serve 'org/model'; it lists org/models, other. Did you mean"):
            engine_at(fake.url).check()
    assert len(fake.asked) == 2


def test_check_accepts_a_model_that_is_served_but_not_listed():
    with ModelServer(lambda asked: models() if asked.method == "GET" else completion("x")) as fake:
        engine_at(fake.url).check()
    assert fake.bodies(CHAT)[0]["max_tokens"] == 1


@pytest.mark.parametrize("status", [404, 500])
def test_check_asks_the_model_where_there_is_no_list(status):
    with ModelServer(lambda asked: (status, "", {}) if asked.method == "GET" else completion("x")) as fake:
        engine_at(fake.url).check()
    with ModelServer(lambda asked: (status, "", {})) as fake:
        with pytest.raises(SimPOError, match=f"does not serve 'org/model'; it lists no models.*HTTP {status}"):
            engine_at(fake.url).check()
    assert len(fake.asked) == 2


def test_check_tells_a_wrong_key():
    with ModelServer(lambda asked: (401, "no", {})) as fake:
        with pytest.raises(SimPOError, match="OPENAI_API_KEY is not set"):
            engine_at(fake.url).check()


@pytest.mark.parametrize(("temperature", "warns"), [(0.8, True), (0.0, False)])
def test_a_server_that_does_not_sample_is_told(caplog, temperature, warns):
    with ModelServer(lambda asked: completion("always this")) as fake:
        list(engine_at(fake.url, temperature=temperature).answers(prompts(20), [False] * 20))
    assert sum("does not sample" in record.message for record in caplog.records) == warns


def test_no_server_is_told():
    with pytest.raises(SimPOError, match="Give its address"):
        ServerEngine(GenerateSettings(), "org/model")
