"""A small Hub on this machine: answers the calls that the real client makes for a push, and keeps what it gets."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import transformers.utils.hub
from huggingface_hub import constants

TOKEN = "hf_" + "secret" * 6


def open_to(monkeypatch, url, token=TOKEN):
    """Point the client, which has read its environment long ago, to another Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no such file")
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)


@dataclass
class Commit:
    """A commit as it arrived: the files it adds."""

    message: str
    revision: str
    files: list[str]


@dataclass
class Repo:
    """A repository: visibility as it was asked for, files at their last state, commits in their order."""

    visibility: str | None
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)


class HubServer:
    """Use as a context manager; `repos` holds what was pushed.

    Args:
        role: what the token may do, "write" or "read".
        refuse_commits: answer every commit with an error, as a Hub that is out of order.
    """

    def __init__(self, role: str = "write", refuse_commits: bool = False):
        self.role, self.refuse_commits = role, refuse_commits
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]]) -> None:
        """Take the lines of a commit: a header, then files, inline or by the hash of an object uploaded before."""
        header = next(line["value"] for line in lines if line["key"] == "header")
        added = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.objects[value["oid"]]
            else:
                continue
            added.append(value["path"])
        repo.commits.append(Commit(header["summary"], revision, added))


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def log_message(self, *arguments: Any) -> None:
        pass

    def _handle(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.hub.calls.append(f"{method} {path}")
        body = self._read()
        if path.startswith("/objects/") and method == "PUT":  # the address is the permission, as with cloud storage
            self.hub.objects[path.split("/")[-1]] = body
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        content = body.decode() if method == "POST" else ""
        for pattern, answer in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return self._answer(*answer(self.hub, content, *match.groups()))
        self._answer(404, {"error": f"no answer to {method} {path}"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _whoami(hub: HubServer, content: str) -> tuple[int, Any]:
    token = {"displayName": "test", "role": hub.role}
    return 200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token", "accessToken": token}}


def _create(hub: HubServer, content: str) -> tuple[int, Any]:
    asked = json.loads(content)
    organization = asked.get("organization") or "tester"
    if organization != "tester":
        return 403, {"error": f"You don't have the rights to create a model under the namespace {organization!r}"}
    name = f"tester/{asked['name']}"
    url = {"url": f"{hub.url}/{name}"}
    if name in hub.repos:
        return 409, {"error": "You already created this model repo", **url}
    hub.repos[name] = Repo(asked.get("visibility"))
    return 200, url


def _validate(hub: HubServer, content: str) -> tuple[int, Any]:
    return 200, {"errors": [], "warnings": []}


def _preupload(hub: HubServer, content: str, name: str, revision: str) -> tuple[int, Any]:
    binary = (".safetensors", ".bin", ".pt", ".pth", ".png")
    files = json.loads(content)["files"]
    modes = {file["path"]: "lfs" if file["path"].endswith(binary) else "regular" for file in files}
    return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}


def _lfs(hub: HubServer, content: str, name: str) -> tuple[int, Any]:
    def answer(thing: dict[str, Any]) -> dict[str, Any]:
        known = thing["oid"] in hub.objects
        return thing if known else {**thing, "actions": {"upload": {"href": f"{hub.url}/objects/{thing['oid']}"}}}

    return 200, {"transfer": "basic", "objects": [answer(thing) for thing in json.loads(content)["objects"]]}


def _commit(hub: HubServer, content: str, name: str, revision: str) -> tuple[int, Any]:
    if hub.refuse_commits:
        return 500, {"error": "The Hub is out of order"}
    repo = hub.repos[name]
    hub.commit(repo, revision, [json.loads(line) for line in content.splitlines()])
    oid = hashlib.sha1(f"{name} {len(repo.commits)}".encode()).hexdigest()
    return 200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid}


def _info(hub: HubServer, content: str, name: str, *rest: str) -> tuple[int, Any]:
    if name not in hub.repos:
        return 404, {"error": "Repository not found"}
    siblings = [{"rfilename": path} for path in hub.repos[name].files]
    return 200, {"id": name, "modelId": name, "sha": "0" * 40, "private": False, "siblings": siblings}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = {
    r"GET /api/whoami-v2": _whoami,
    r"POST /api/repos/create": _create,
    r"POST /api/validate-yaml": _validate,
    rf"POST /api/models/{_NAME}/preupload/([\w.-]+)": _preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _lfs,
    rf"POST /api/models/{_NAME}/commit/([\w.-]+)": _commit,
    rf"GET /api/models/{_NAME}": _info,
    rf"GET /api/models/{_NAME}/revision/([\w.-]+)": _info,
}
