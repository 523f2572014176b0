"""The address of a server: what is asked of one, and how it is shown."""

from urllib.parse import SplitResult, urlsplit

from ..errors import SimPOError

_WANTED = "Give one such as http://localhost:8000/v1"
_HIDDEN = "an address that is not shown"


def checked_address(url: str) -> str:
    """Returns an address without the slashes at its end.

    Raises:
        SimPOError: it is not one of http or https, or it holds a user, a password or a query; those may be secrets, so
            the message does not show them.
    """
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise SimPOError(f"server is not an address. {_WANTED}.") from None
    if parts.scheme not in ("http", "https") or not has_host or not _is_plain(url):
        raise SimPOError(f"server is not an address that begins with http:// or https://. {_WANTED}.")
    if "@" in url or "?" in url or "#" in url:
        raise SimPOError(
            f"server, at {public_url(url)}, holds a user, a password or a query. {_WANTED}, and put the key into the "
            "environment variable that server_key_variable names."
        )
    return url.rstrip("/")


def public_url(url: str) -> str:
    """Returns an address as it may be shown: scheme, host, port and path, without user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        # A password may hold a sign that ends the host, such as "/": then what looks like the host is a part of it.
        is_clear = "@" not in parts.path + parts.query + parts.fragment
        return _place(parts) + parts.path if is_clear else _HIDDEN
    except ValueError:
        return _HIDDEN


def is_this_machine(url: str) -> bool:
    """Returns true for an address of the machine itself."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _place(parts: SplitResult) -> str:
    if not parts.scheme or not parts.hostname:
        raise ValueError("not an address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port is not None else "")


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url
