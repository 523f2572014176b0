"""JSON over HTTP with an OpenAI-compatible server: several requests at once, each tried again where that can help.

It uses the standard library. The client of the Hub may send the user's token of the Hub, and refuses while offline.
"""

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from random import Random
from threading import Event, Thread
from typing import Any, TypeVar
from urllib.parse import urljoin

from ..errors import SimPOError, first_line
from ..log import get_logger
from .address import checked_address, is_this_machine, public_url

logger = get_logger(__name__)

# Seconds. An answer of thousands of tokens takes minutes; a list of models does not.
TIME_LIMIT = 600.0
CHECK_TIME_LIMIT = 30.0
TRIES = 6
# Seconds before the second try, doubled with each further one, and the longest wait that a server can ask for.
FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
# Statuses below 500 that a later try may not meet: a time limit of the server, and too many requests.
_PASSING = (408, 429)
# Servers refuse a single request with these, such as one that is longer than the positions of the model.
OF_ONE_REQUEST = (400, 413, 422)
_MOST_BYTES = 100_000
_MOST_CHARACTERS = 300

Item = TypeVar("Item")
Result = TypeVar("Result")


class Refused(SimPOError):
    """A server that understood where the request goes refused it, with an HTTP status and a message of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Failed(Exception):
    """A try that failed, but a later one may not: the HTTP status, if there was one, and the wait it asks for."""

    def __init__(self, why: str, status: int | None = None, wait: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.wait = wait


class Server:
    """A server of models.

    Args:
        url: the address that its paths are below.
        key_variable: the environment variable that holds its key, if it is set; the key goes nowhere else.
        requests: how many requests :meth:`map` has under way at once.

    Raises:
        SimPOError: the address or the key cannot be used.
    """

    def __init__(self, url: str, key_variable: str, requests: int) -> None:
        self._url = checked_address(url)
        self.address = public_url(url)
        self._key_variable = key_variable
        self._key = _key(key_variable)
        if self._key and self._url.startswith("http:") and not is_this_machine(url):
            logger.warning(
                f"The key in {key_variable} goes to {self.address} unencrypted, for all on the way to read. Use https, "
                f"or unset {key_variable} if the server needs no key."
            )
        self._requests = requests
        # A server on this machine is not asked through a proxy of the network.
        proxies = [urllib.request.ProxyHandler({})] if is_this_machine(url) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._stopped = Event()
        self._random = Random()  # not the global one, whose state belongs to who seeded it

    def ask_once(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the answer to a GET below the address, or to a POST with a body; it is not tried again.

        Raises:
            SimPOError: the server cannot be reached.
            Refused: it gave no such answer.
        """
        try:
            return self._try(path, body, CHECK_TIME_LIMIT if body is None else TIME_LIMIT)
        except _Failed as failed:
            if failed.status is not None:
                raise Refused(f"{self.address} fails ({failed}). Look what its log says.", failed.status) from None
            raise SimPOError(
                f"{self.address} cannot be reached ({failed}). Start the server, or correct server."
            ) from None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer to a POST below the address; it is tried again where the failure may pass.

        Raises:
            SimPOError: the server did not answer at any try.
            Refused: it refused the request.
        """
        stopped = self._stopped
        delay, why = FIRST_DELAY, ""
        for number in range(TRIES):
            try:
                return self._try(path, body, TIME_LIMIT)
            except _Failed as failed:
                why = str(failed)
                wait = min(max(failed.wait, delay * self._random.uniform(0.5, 1.0)), LONGEST_DELAY)
            delay *= 2
            if number + 1 < TRIES and stopped.wait(wait):
                break
        raise SimPOError(
            f"{self.address} failed {TRIES} times in a row ({why}). What is finished is kept: when the server is up "
            "again, the same command goes on from there."
        )

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yields each item with what a function returns for it, as they finish; begun in the order of the items.

        An error of the function is raised here. After it, and when the iterator is closed, no further item is begun,
        and those under way are not waited for.
        """
        todo: SimpleQueue[Item] = SimpleQueue()
        done: SimpleQueue[tuple[Item, Any, BaseException | None]] = SimpleQueue()
        self._stopped = stopped = Event()
        for item in items:
            todo.put(item)

        def work() -> None:
            while not stopped.is_set():
                try:
                    item = todo.get_nowait()
                except Empty:
                    return
                try:
                    done.put((item, function(item), None))
                except BaseException as error:
                    stopped.set()  # here: the one who waits may be told late
                    done.put((item, None, error))

        try:
            # Daemons: Python ends without them, however long their requests still take.
            for _ in range(min(self._requests, len(items))):
                Thread(target=work, daemon=True).start()
            for _ in items:
                item, result, error = done.get()
                if error is not None:
                    raise error
                yield item, result
        finally:
            stopped.set()

    def _try(self, path: str, body: Mapping[str, Any] | None, time_limit: float) -> dict[str, Any]:
        """Returns the answer to one request.

        Raises:
            _Failed: the failure may pass.
            Refused: it will not.
        """
        headers = {"Accept": "application/json", "User-Agent": "simpo-trainer"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with self._opener.open(request, timeout=time_limit) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            raise self._http_error(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None)
            cause = reason if isinstance(reason, Exception) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise SimPOError(
                    f"The certificate of {self.address} cannot be verified ({self.shown(str(cause))}). Install the "
                    "certificate of its authority, or correct server."
                ) from None
            raise _Failed(self.shown(first_line(cause))) from None
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            begins = self.shown(content[:_MOST_BYTES].decode("utf-8", "replace"))
            raise Refused(
                f"{self.address}{path} answered with something else than a JSON object: {begins!r}. Correct server, "
                "which ends in /v1 for most servers.",
                200,
            )
        return answer

    def _http_error(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                content = error.read(_MOST_BYTES)
            except (OSError, http.client.HTTPException):
                content = b""
        status = error.code
        said = self.shown(_message(content.decode("utf-8", "replace"))) or self.shown(error.reason)
        if status in _PASSING or status >= 500:
            return _Failed(f"HTTP {status}: {said}", status, _seconds(error.headers.get("Retry-After")))
        if 300 <= status < 400:
            place = self.shown(public_url(urljoin(self._url, error.headers.get("Location") or "")))
            return Refused(
                f"{self.address} sends requests on to {place}, and they do not follow, because the key would go along. "
                "Give the address where the API is as server.",
                status,
            )
        return Refused(f"{self.address} refused a request (HTTP {status}): {said!r}. {self._advice(status)}", status)

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            found = "is not accepted" if self._key else "is not set"
            return (
                f"The environment variable {self._key_variable} {found}: put a key of this server into it, or name "
                "another variable as server_key_variable."
            )
        if status in (404, 405):
            return "Correct server, which ends in /v1 for most servers, or server_model."
        return "Correct the setting that it names."

    def shown(self, text: str) -> str:
        """Returns a server's text for a message: one line, short, without the key."""
        plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        if self._key:
            plain = plain.replace(self._key, "<key>")
        return plain if len(plain) <= _MOST_CHARACTERS else plain[: _MOST_CHARACTERS - 3] + "..."


def model_names(server: Server, path: str) -> list[str] | None:
    """Returns the names of a server's models; None if it does not list them.

    Raises:
        SimPOError: the server cannot be reached, or refuses the key.
    """
    try:
        listed = server.ask_once(path).get("data")
    except Refused as error:
        if error.status in (404, 405) or error.status >= 500:
            return None
        raise
    if not isinstance(listed, list):
        return None
    names = [model.get("id") for model in listed if isinstance(model, dict)]
    return [name for name in names if isinstance(name, str) and name.isprintable()]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise SimPOError(f"The environment variable {variable} holds signs that no key has. Put the key alone into it.")
    return key


def _message(text: str) -> str:
    """Returns the message in the body of an error, in one of the forms that servers give it, or the body."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    if not isinstance(body, dict):
        return text
    found = body.get("error") or body.get("detail") or body.get("message") or text
    if isinstance(found, dict):
        found = found.get("message") or found
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _seconds(text: str | None) -> float:
    """Returns the seconds of a header Retry-After; none for a date."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
