"""The recipe's `chat_template` to the text of a template: given as text, as a file, or as one that trl ships."""

import os
from importlib.resources import files
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from ..data.messages import shorten
from ..errors import SimPOError, near

_TRL = "trl:"


def resolve_chat_template(value: str) -> str:
    """The text of the chat template that `value` gives, compiled once so that a mistake shows before a model is loaded.

    Args:
        value: the text of a Jinja template (anything with `{{` or `{%`), the path of a file that holds one, or
            `trl:NAME` for a template of the installed trl package.

    Raises:
        SimPOError: there is no such file or name, or the text does not compile.
    """
    if "{{" in value or "{%" in value:
        return _compiled(value, "chat_template")
    if value.startswith(_TRL):
        return _compiled(_trl_template(value.removeprefix(_TRL)), value)
    path = Path(os.path.expanduser(value))
    if not os.path.isfile(path):  # not Path's method, which fails on a name that is too long, as a pasted text may be
        raise SimPOError(_no_file_message(value, path))
    try:
        return _compiled(path.read_text(encoding="utf-8"), f"The chat template {value}")
    except (OSError, UnicodeDecodeError) as error:
        raise SimPOError(
            f"The chat template {value} cannot be read: {error}. Set chat_template to a text file that holds one."
        ) from error


def _compiled(text: str, name: str) -> str:
    try:
        # The public way to transformers' own compiler, with its extensions; no conversation, so nothing is rendered.
        render_jinja_template(conversations=[], chat_template=text)
    except TemplateSyntaxError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise SimPOError(
            f"{name} does not compile: line {error.lineno}: {error.message}: {line[:80]!r}. Correct that line; it must "
            "be a Jinja template."
        ) from error
    return text


def _trl_template(name: str) -> str:
    folder = files("trl") / "chat_templates"
    names = sorted(file.name.removesuffix(".jinja") for file in folder.iterdir() if file.name.endswith(".jinja"))
    if name not in names:
        likely = near(name, names, 5) or names
        raise SimPOError(
            f"trl ships no chat template {name!r}. Set chat_template to one that it does: "
            f"{', '.join(_TRL + other for other in likely)}."
        )
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def _no_file_message(value: str, path: Path) -> str:
    if not value:
        found = "chat_template is empty"
    elif os.path.isdir(path):
        found = f"chat_template {value!r} is a folder"
    elif not os.path.isdir(path.parent):
        found = f"The chat template file {shorten(value)!r} does not exist, and neither does its folder"
    else:
        found = f"The chat template file {shorten(value)!r} does not exist"
        if likely := near(path.name, [file.name for file in path.parent.iterdir()], 3):
            found += f"; in its folder there is {', '.join(likely)}"
    return (
        f"{found}. chat_template must be the text of a Jinja template (with {{{{ }}}} or {{% %}}), a file that holds "
        "one, or trl:NAME for a template of trl, as trl:qwen3."
    )
