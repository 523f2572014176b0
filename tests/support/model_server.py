"""A stand-in for a server of models on this machine: answers by a function, and keeps what it was asked."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Status, content and headers of an answer; text is sent as it is.
Reply = tuple[int, Any, dict[str, str]]


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class ModelServer:
    """Use as a context manager; `asked` holds the requests, `most_at_once` how many were under way at the same time.

    Args:
        answer: called with each request in a thread of its own; returns a `Reply`, or the content of one with status
            200.
    """

    def __init__(self, answer: Callable[[Asked], Any]):
        self.answer = answer
        self.asked: list[Asked] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Threads(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.host}/v1"

    def __enter__(self) -> "ModelServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path: str) -> list[Any]:
        """Returns the bodies that arrived at a path."""
        return [asked.body for asked in self.asked if asked.path == path]

    def reply(self, asked: Asked) -> Reply:
        """Returns the answer to a request, once it is kept."""
        with self._lock:
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.answer(asked)
        finally:
            with self._lock:
                self._at_once -= 1
        return reply if isinstance(reply, tuple) else (200, reply, {})


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # of connections that wait; one too many comes again after a second


class _Handler(BaseHTTPRequestHandler):
    owner: ModelServer

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *arguments: Any) -> None:
        pass

    def _handle(self, body: Any) -> None:
        status, content, headers = self.owner.reply(Asked(self.command, self.path, dict(self.headers), body))
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def models(*names: str) -> dict[str, Any]:
    """Returns the answer to GET /models of a server with these models."""
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


def completion(text: str | None, tokens: int | None = 3, finish_reason: str = "stop") -> dict[str, Any]:
    """Returns the answer to POST /chat/completions with one answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 5, "completion_tokens": tokens}}
    return {"object": "chat.completion", "choices": [choice], **usage}
