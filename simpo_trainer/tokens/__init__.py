"""Turning rows into token ids: chat templates, prompts and answers, truncation."""

from typing import TYPE_CHECKING

from ..lazy import exported

if TYPE_CHECKING:
    from .chat_templates import resolve_chat_template

__all__ = ["resolve_chat_template"]

__getattr__ = exported(__name__, dict.fromkeys(__all__, "chat_templates"))
