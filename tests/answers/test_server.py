"""Requests to a server: what is tried again, what is told at once, and what never leaves this process."""

import threading
import time

import pytest

from model_server import ModelServer
from simpo_trainer.answers import server as module
from simpo_trainer.answers.address import checked_address, public_url
from simpo_trainer.answers.server import Refused, Server
from simpo_trainer.errors import SimPOError

KEY = "sk-very-secret-1234"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("A_KEY", KEY)


def connect(url, requests=4):
    return Server(url, "A_KEY", requests)


def replies(*given):
    """An answer function that gives these replies in turn, and the last one from then on."""
    left = list(given)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://models.example/v1", True),
        ("https://models.example/v1", False),
        ("http://127.0.0.1:8000/v1", False),
    ],
)
def test_a_key_that_goes_out_unencrypted_is_told(url, told, caplog, monkeypatch):
    connect(url)
    assert ("The key in A_KEY goes to" in caplog.text) == told
    assert ("models.example/v1 unencrypted, for all" in caplog.text) == told
    assert KEY not in caplog.text
    caplog.clear()
    monkeypatch.delenv("A_KEY")
    connect(url)
    assert not caplog.text


def test_a_failure_that_may_pass_is_tried_again():
    with ModelServer(replies((503, "loading", {}), (500, {"error": {"message": "no"}}, {}), {"fine": 1})) as fake:
        assert connect(fake.url).post("/x", {"a": "ä"}) == {"fine": 1}
    assert [asked.path for asked in fake.asked] == ["/v1/x"] * 3
    assert fake.asked[0].body == {"a": "ä"} and fake.asked[0].headers["Content-Type"] == "application/json"


def test_too_many_requests_wait_for_as_long_as_the_server_says():
    with ModelServer(replies((429, "slow down", {"Retry-After": "0.4"}), {"fine": 1})) as fake:
        began = time.monotonic()
        connect(fake.url).post("/x", {})
        assert 0.4 <= time.monotonic() - began < 5


def test_no_server_makes_the_command_wait_for_longer_than_the_longest_delay(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_DELAY", 0.05)
    with ModelServer(replies((429, "slow down", {"Retry-After": "86400"}), {"fine": 1})) as fake:
        began = time.monotonic()
        connect(fake.url).post("/x", {})
        assert time.monotonic() - began < 5


def test_the_tries_end():
    with ModelServer(replies((503, {"detail": "out of memory"}, {}))) as fake:
        with pytest.raises(SimPOError, match="failed 6 times in a row .HTTP 503: out of memory.*finished is kept"):
            connect(fake.url).post("/x", {})
    assert len(fake.asked) == 6


def test_a_server_that_is_down_is_told_at_once():
    with ModelServer(replies({})) as fake:
        pass
    with pytest.raises(SimPOError, match=rf"{fake.url} cannot be reached .*refused.*Start the server"):
        connect(fake.url).ask_once("/models")


def test_a_server_that_ends_in_the_middle_is_tried_again():
    with ModelServer(replies((200, '{"half', {"Content-Length": "1000"}), {"fine": 1})) as fake:
        assert connect(fake.url).post("/x", {}) == {"fine": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"error": {"message": "too long a context"}}, "too long a context"),
        ({"error": "as text"}, "as text"),
        ({"detail": [{"msg": "field required"}]}, "field required"),
        ({"message": "old vLLM"}, "old vLLM"),
        ("<html>no\n\x1b[31mpage</html>", r"<html>no \[31mpage</html>"),
        ("", "Bad Request"),
    ],
)
def test_a_refusal_is_told_at_once_in_the_words_of_the_server(content, told):
    with ModelServer(replies((400, content, {}))) as fake:
        with pytest.raises(Refused, match=rf"HTTP 400.*{told}") as caught:
            connect(fake.url).post("/x", {})
    assert caught.value.status == 400 and len(fake.asked) == 1 and "\x1b" not in str(caught.value)


def test_long_texts_of_a_server_are_shortened():
    with ModelServer(replies((400, "word " * 10_000, {}))) as fake:
        with pytest.raises(Refused) as caught:
            connect(fake.url).post("/x", {})
    assert len(str(caught.value)) < 600


def test_the_key_is_in_the_header_and_never_in_an_error():
    with ModelServer(lambda asked: (401, {"error": f"wrong key {asked.headers['Authorization']}"}, {})) as fake:
        with pytest.raises(Refused, match="wrong key Bearer <key>.*A_KEY is not accepted") as caught:
            connect(fake.url).post("/x", {})
    assert fake.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)


def test_without_a_key_no_header_is_sent(monkeypatch):
    monkeypatch.delenv("A_KEY")
    with ModelServer(replies((401, "who are you?", {}))) as fake:
        with pytest.raises(Refused, match="who are you.*A_KEY is not set"):
            connect(fake.url).post("/x", {})
    assert "Authorization" not in fake.asked[0].headers


def test_a_key_with_other_signs_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("A_KEY", f"{KEY}\r\nX-Other: 1")
    with pytest.raises(SimPOError, match="A_KEY holds signs") as caught:
        connect("http://localhost:1/v1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_does_not_follow_a_redirect(status):
    with ModelServer(replies({"got": 1})) as other:
        place = f"{other.url.replace('http://', 'http://who:pass@')}/x?token=abc"
        with ModelServer(replies((status, "", {"Location": place}))) as fake:
            with pytest.raises(Refused, match=rf"sends requests on to {other.url}/x, ") as caught:
                connect(fake.url).post("/x", {})
    assert not other.asked
    assert "pass" not in str(caught.value) and "abc" not in str(caught.value)


def test_something_else_than_json_is_told():
    with ModelServer(replies("<html>a login page</html>")) as fake:
        with pytest.raises(SimPOError, match="something else than a JSON object.*login page.*ends in /v1"):
            connect(fake.url).post("/x", {})


def test_requests_under_way_are_bounded_and_results_come_as_they_finish():
    first_may_end = threading.Event()

    def answer(asked):
        if asked.body["n"] == 0:
            first_may_end.wait(20)
        time.sleep(0.01)
        return {"n": asked.body["n"]}

    with ModelServer(answer) as fake:
        server = connect(fake.url, requests=3)
        order = []
        for number, reply in server.map(lambda n: server.post("/x", {"n": n}), range(12)):
            assert reply == {"n": number}
            order.append(number)
            if len(order) == 11:
                first_may_end.set()
    assert order[-1] == 0 and sorted(order) == list(range(12))
    assert fake.most_at_once == 3


def test_an_error_ends_the_work_without_waiting_for_the_rest():
    end = threading.Event()

    def answer(asked):
        if asked.body["n"] == 1:
            return 400, "a mistake", {}
        end.wait(20)
        return {}

    with ModelServer(answer) as fake:
        server = connect(fake.url, requests=2)
        began = time.monotonic()
        with pytest.raises(Refused, match="a mistake"):
            list(server.map(lambda n: server.post("/x", {"n": n}), range(50)))
        assert time.monotonic() - began < 10
        end.set()
        time.sleep(0.1)
        assert len(fake.asked) <= 3  # one more may have begun before the error was read


def test_closing_ends_waits_and_begins_nothing_more(monkeypatch):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.3)

    def answer(asked):
        return {"fine": 1} if asked.body["n"] == 0 else (503, "later", {})

    with ModelServer(answer) as fake:
        server = connect(fake.url, requests=2)
        finished = server.map(lambda n: server.post("/x", {"n": n}), range(50))
        assert next(finished) == (0, {"fine": 1})
        finished.close()
        time.sleep(0.05)  # a request that was on its way
        asked = len(fake.asked)
        time.sleep(0.5)
        assert len(fake.asked) == asked <= 3


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host/v1",
        "http://hunter2@host/v1",
        "http://host/v1?api_key=hunter2",
        "http://host/v1#hunter2",
        "http://user:hunter2/9@host/v1",
        "http://user:12/hunter2@host/v1",
        "http://user:12?hunter2@host/v1",
        "http://host:hunter2/v1",
        "hunter2@host:80/v1",
        "ftp://user:hunter2@host",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(url):
    with pytest.raises(SimPOError, match="server") as caught:
        checked_address(url)
    assert "hunter2" not in str(caught.value) and "hunter2" not in public_url(url)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "file:///etc/passwd", "http://", "http://ho st/v1", "http://hö/v1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(SimPOError, match="begins with http"):
        checked_address(url)


def test_an_address_is_kept_as_it_is_but_for_a_slash():
    assert checked_address("https://Host.example:8443/a/v1/") == "https://Host.example:8443/a/v1"
    assert public_url("http://[::1]:8000/v1") == "http://[::1]:8000/v1"


def test_nothing_is_begun_behind_an_error_that_is_read_late():
    begun = []

    def work(item):
        begun.append(item)
        if item == 1:
            raise SimPOError("no")

    results = connect("http://127.0.0.1:9/v1", requests=1).map(work, range(30))
    assert next(results) == (0, None)
    time.sleep(0.3)  # the worker meets its error, and would be far by now
    with pytest.raises(SimPOError, match="no"):
        next(results)
    assert begun == [0, 1]
