"""The page of a run that trains: one path, one address, one host name, and nothing else."""

import http.client
import json
import threading

import pytest

from simpo_trainer.report.watch import Watch


@pytest.fixture
def server(tmp_path):
    facts = {"status": "running", "model": {"label": "mine"}, "method": "simpo", "results": {"steps": 0, "metrics": {}}}
    (tmp_path / "run_manifest.json").write_text(json.dumps(facts))
    (tmp_path / "secret.txt").write_text("secret")
    with Watch([tmp_path]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def asked(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_page_is_there_and_is_made_anew(server, tmp_path):
    status, first, headers = asked(server, server.path)
    assert status == 200 and "mine" in first and 'http-equiv="refresh"' in first
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    (tmp_path / "log.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    assert "step 3" in asked(server, server.path)[1]


def test_nothing_else_is_served(server):
    for path in ("/", "/secret.txt", f"{server.path}/../secret.txt", "/report.html", f"{server.path}x"):
        assert asked(server, path)[0] == 404
    assert asked(server, server.path, method="POST")[0] == 501
    assert server.server_address[0] == "127.0.0.1" and len(server.path) > 20


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost.evil.example"])
def test_a_request_under_another_name_is_refused(server, host):
    assert asked(server, server.path, host=host)[0] == 404


def test_a_run_that_writes_its_files_is_asked_for_later(server, tmp_path):
    (tmp_path / "run_manifest.json").write_text("{")
    assert asked(server, server.path)[0] == 503
