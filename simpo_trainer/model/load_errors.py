"""Errors of loading a model or a tokenizer: one short message with the way out, whatever the libraries raise."""

import json
import re

import transformers
from safetensors import SafetensorError

from ..errors import SimPOError

_NAME_OR_FOLDER = (
    "model_name_or_path must be a folder made by save_pretrained or a name on the Hugging Face Hub (for a private one, "
    "log in with `hf auth login`)."
)
_TORN = "If a file is torn, copy or download it again."
# Characters of a library's message that are shown.
_LONGEST = 400


def not_loaded(what: str, error: Exception) -> SimPOError:
    """Returns the error for something that could not be loaded.

    Args:
        what: the model or tokenizer and its name, as in "The model 'gpt2'".
        error: the error of a library.
    """
    if isinstance(error, SimPOError):
        return error
    return SimPOError(f"{what} could not be loaded: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Returns the cause and the remedy, in sentences."""
    text = str(error)
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)Config'>", text):
        return (
            f"it is a {found[1]}, which is no causal language model. SimPO trains decoder-only models with a head over "
            "the vocabulary."
        )
    if found := re.search(r"has model type `(.*?)` but Transformers does not recognize", text):
        return (
            f"transformers {transformers.__version__} does not know the model type {found[1]!r} of its config.json. "
            "Upgrade transformers (`pip install -U transformers`), or correct the file."
        )
    if "trust_remote_code" in text:
        return (
            "its folder or repository brings Python code that would run here. Read that code; to run it, set "
            "model_init_kwargs: {trust_remote_code: true, revision: COMMIT}, with the commit that you have read."
        )
    if "Couldn't instantiate the backend tokenizer" in text:
        return (
            "there are no tokenizer files that can be read. Save the model's tokenizer there (save_pretrained), name "
            "another as tokenizer_name_or_path, or install sentencepiece or tiktoken where its files need one of them."
        )
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        return f"its loader does not take {found[1]}. Remove that from model_init_kwargs."
    reason = " ".join(text.split())[:_LONGEST].rstrip(".") or type(error).__name__
    if isinstance(error, ImportError):
        return f"{reason}. Install that package, or load another model."
    if "valid JSON" in text or isinstance(error, json.JSONDecodeError | SafetensorError):
        return f"{reason}. {_TORN}"
    if isinstance(error, OSError):
        return f"{reason}. {_NAME_OR_FOLDER}"
    if isinstance(error, RuntimeError | ValueError):
        return f"{reason}."
    return f"{type(error).__name__}: {reason}. Correct model_init_kwargs if one of them is meant. {_TORN}"
