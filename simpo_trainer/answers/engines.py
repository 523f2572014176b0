"""The engine that answers: chosen by what is there, and made ready without loading the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from ..errors import SimPOError
from ..model.load import check_model_name, init_kwargs, load_model, load_tokenizer
from ..model.load_errors import not_loaded
from ..model.settings import ModelSettings
from ..recipe.answer_keys import GenerateSettings
from ..recipe.load import Recipe
from ..record.fingerprints import sha256_of, tokenizer_fingerprint
from ..tokens.chat_templates import resolve_chat_template
from .model_source import base_of, source_fingerprint
from .prompt_ids import PromptIds, prompt_ids
from .requests import Engine, Prompt
from .vllm_engine import VllmEngine, vllm_is_there

EngineName = Literal["transformers", "vllm", "server"]


@dataclass
class Ready:
    """All that is known before a model is loaded.

    `identity` is what decides the answers beside the set of prompts, by name. `prompts` are those that can be answered,
    and `left_out` counts the others by the reason. `build` loads the model.
    """

    identity: dict[str, Any]
    prompts: list[Prompt]
    build: Callable[[], Engine]
    left_out: dict[str, int] = field(default_factory=dict)


def make_ready(recipe: Recipe, settings: GenerateSettings, prompts: list[Prompt]) -> Ready:
    """Returns what answers these prompts.

    Raises:
        SimPOError: the model cannot be found, has no chat template, or its server does not answer.
    """
    name = chosen_engine(settings)
    return _server(recipe, settings, prompts) if name == "server" else _local(recipe, settings, prompts, name)


def chosen_engine(settings: GenerateSettings) -> EngineName:
    """Returns the engine that the settings name, or else the fastest that is there.

    Raises:
        SimPOError: a server is asked for without its address, or has one beside another engine; or vLLM is not there.
    """
    if settings.engine == "server" and not settings.server:
        raise SimPOError("engine is server, but its address is missing. Set server: http://HOST:PORT/v1.")
    if settings.server and settings.engine not in (None, "server"):
        raise SimPOError(f"server is set beside engine: {settings.engine}. Remove one of them.")
    if settings.engine == "vllm" and not vllm_is_there():
        raise SimPOError("engine is vllm, but vLLM is not installed. Run `pip install vllm`, or leave engine out.")
    if settings.server:
        return "server"
    return settings.engine or ("vllm" if vllm_is_there() and torch.accelerator.is_available() else "transformers")


def _sampling(settings: GenerateSettings) -> dict[str, Any]:
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "seeds": settings.used_seeds,
    }


def _server(recipe: Recipe, settings: GenerateSettings, prompts: list[Prompt]) -> Ready:
    from .server_engine import ServerEngine

    engine = ServerEngine(settings, str(recipe.model.model_name_or_path))
    engine.check()
    return Ready({"engine": "server", "model": engine.model, **_sampling(settings)}, prompts, lambda: engine)


def _local(recipe: Recipe, settings: GenerateSettings, prompts: list[Prompt], engine: EngineName) -> Ready:
    name, kwargs = str(recipe.model.model_name_or_path), init_kwargs(recipe.training)
    check_model_name(name, kwargs.get("gguf_file"))
    tokenizer = load_tokenizer(name, recipe.training, instead=recipe.data.tokenizer_name_or_path)
    if recipe.data.chat_template:
        tokenizer.chat_template = resolve_chat_template(recipe.data.chat_template)
    positions = _positions(name, kwargs)
    ids = prompt_ids(prompts, tokenizer, recipe.training, positions)
    if not ids.ids:
        raise SimPOError("No prompt can be answered; the reasons stand above.")
    dtype = kwargs.get("dtype") or ("auto" if torch.accelerator.is_available() else "float32")
    dtype = str(dtype).removeprefix("torch.")
    kwargs = {**kwargs, "dtype": dtype}
    identity = {
        "engine": engine,
        "model": source_fingerprint(name, kwargs.get("revision")),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat template": sha256_of(tokenizer.chat_template),
        "system messages": recipe.training.system_messages,
        "empty system message": recipe.training.auto_insert_empty_system_msg,
        "dtype": dtype,
        **_sampling(settings),
    }
    if engine == "vllm":
        build = partial(_vllm, name, kwargs, recipe.data.tokenizer_name_or_path or name, ids, settings)
    else:
        build = partial(_transformers, name, kwargs, tokenizer, ids, settings, positions)
    left_out = {"refused by the chat template": ids.refused, "longer than the positions of the model": ids.too_long}
    return Ready(identity, [prompt for prompt in prompts if prompt.hash in ids.ids], build, left_out)


def _positions(name: str, kwargs: Mapping[str, Any]) -> int | None:
    """Returns the positions of a model; None where its configuration does not tell."""
    wanted = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder", "gguf_file")
    try:
        given = {key: kwargs[key] for key in wanted if key in kwargs}
        config = AutoConfig.from_pretrained(base_of(name) or name, **given)
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(f"The configuration of {name!r}", error) from error
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _transformers(
    name: str,
    kwargs: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    ids: PromptIds,
    settings: GenerateSettings,
    positions: int | None,
) -> Engine:
    from .transformers_engine import TransformersEngine

    loading = replace(ModelSettings(), model_init_kwargs=kwargs)
    model = load_model(name, loading, adapter_follows=False, bf16=False)
    return TransformersEngine(model, tokenizer, ids.ids, ids.end_ids, settings, positions)


def _vllm(name: str, kwargs: dict[str, Any], tokenizer: str, ids: PromptIds, settings: GenerateSettings) -> Engine:
    if base_of(name):
        raise SimPOError(
            f"{name!r} is an adapter, and vLLM is given whole models here. Merge it first, or set engine: transformers."
        )
    options = {key: kwargs[key] for key in ("dtype", "revision", "trust_remote_code") if key in kwargs}
    return VllmEngine(settings, name, tokenizer, lambda prompt: ids.ids[prompt.hash], ids.end_ids, **options)
