"""The page of a report: HTML that needs nothing but itself, in which every text from outside is escaped."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from .charts import Chart

# The sheet is named in the policy by its hash.
_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class Html(str):
    """Text that is HTML already; any other text is escaped where it is put in."""


def text(value: Any) -> Html:
    """Returns a value as HTML, escaped unless it is HTML already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def joined(parts: Iterable[Any]) -> Html:
    """Returns parts one behind the other, each escaped unless it is HTML."""
    return Html("".join(map(text, parts)))


def element(name: str, *content: Any, **attributes: str) -> Html:
    """Returns an element; contents and attributes are escaped unless they are HTML."""
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{joined(content)}</{name}>")


def section(title: str, *content: Any) -> Html:
    """Returns a part of the page with its title; nothing without content."""
    return joined([element("h2", title), *content]) if any(content) else Html("")


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]], **attributes: str) -> Html:
    """Returns a table that scrolls where the screen is narrow; numbers stand at the right."""
    head = element("tr", *(element("th", cell) for cell in header)) if any(header) else Html("")
    body = [element("tr", *(_cell(cell) for cell in row)) for row in rows]
    return element("div", element("table", head, *body, **attributes), class_="wide")


def gallery(charts: Sequence[Chart]) -> Html:
    """Returns charts beside or below each other, as many as fit."""
    if not charts:
        return Html("")
    return element("div", *map(_figure, charts), class_="charts")


def page(title: str, body: Html, *, refresh: int | None = None) -> str:
    """Returns the whole page.

    Args:
        title: of the window.
        body: its content.
        refresh: seconds after which a browser asks for it again; None for never.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    again = f'<meta http-equiv="refresh" content="{refresh:d}">\n' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n{again}'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def zoned(moment: float | str | None) -> str:
    """Returns a time with its zone, from seconds since 1970 or a time in ISO's form; "unknown" for None."""
    if moment is None:
        return "unknown"
    if isinstance(moment, str):
        try:
            found = datetime.fromisoformat(moment)
        except ValueError:
            return "unknown"
    else:
        found = datetime.fromtimestamp(moment, UTC)
    return f"{found:%Y-%m-%d %H:%M} {found.tzname() or ''}".strip()


def _cell(value: Any) -> Html:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return element("td", _shown(value), **({"class_": "number"} if is_number else {}))


def _shown(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _figure(chart: Chart) -> Html:
    picture = chart.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(chart.text)}" ', 1)
    return element("figure", element("figcaption", chart.title), Html(picture), class_="chart")
