"""Turning rows into token ids: chat templates, prompts and answers, truncation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat_templates import resolve_chat_template

__all__ = ["resolve_chat_template"]


def __getattr__(name: str):
    # Imported on first use: many modules here need no tokenizer.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import chat_templates

    return getattr(chat_templates, name)
