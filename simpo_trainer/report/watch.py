"""`simpo report --watch`: the page on this machine, made anew each time that a browser asks for it.

Nothing else is served: one page under a random path, on 127.0.0.1 alone, to requests that name this address as their
host, so that a page from elsewhere cannot reach it under a name of its own.
"""

import secrets
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from ..errors import SimPOError
from ..record.folders import check_runs
from .command import report_of

_ADDRESS = "127.0.0.1"
# Seconds after which the browser asks again.
REFRESH = 15


class Watch(HTTPServer):
    """Serves the page about some runs under `url`.

    Args:
        folders: output folders of runs.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        check_runs(folders, "report")
        self.folders = folders
        self.path = f"/{secrets.token_urlsafe(16)}"
        super().__init__((_ADDRESS, 0), _Page)  # 0: a port that is free

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{_ADDRESS}:{self.server_port}{self.path}"

    def is_asked_for(self, host: str | None, path: str) -> bool:
        """Returns whether a request is for the page, under the name of this machine."""
        names = {f"{name}:{self.server_port}" for name in (_ADDRESS, "localhost")}
        return host in names and secrets.compare_digest(path.encode(), self.path.encode())


class _Page(BaseHTTPRequestHandler):
    server: Watch
    server_version, sys_version = "simpo", ""
    # A browser that opens a connection and says nothing would keep the others waiting.
    timeout = 10

    def do_GET(self) -> None:  # noqa: N802, the name that the library calls
        """Send the page, or 404 for anything else."""
        if not self.server.is_asked_for(self.headers.get("Host"), self.path):
            self.send_error(404)
            return
        try:
            content = report_of(self.server.folders, refresh=REFRESH).encode()
        except SimPOError:  # the run is writing its files
            self.send_error(503)
            return
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""
