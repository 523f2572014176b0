"""The engine that asks an OpenAI-compatible server: a request for each answer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import SimPOError, did_you_mean
from ..log import get_logger
from ..recipe.answer_keys import GenerateSettings
from .requests import Answer, Answered, Prompt
from .server import OF_ONE_REQUEST, Refused, Server, model_names

logger = get_logger(__name__)

# With so many prompts refused and none answered, it is not the prompts.
_FIRST = 20
_TOLD = 3
# Prompts after which answers that are all the same tell that the server does not sample.
_SAMPLES = 8


class ServerEngine:
    """Answers prompts by a server.

    Args:
        settings: how to sample, and the server.
        model: the model that the recipe names, for a server that knows it under the same name.

    Raises:
        SimPOError: the address of the server cannot be used.
    """

    promise = (
        "The same command gives the same rows, keys and order, and makes no answer again that is there. The texts are "
        "the server's: asked again with the same seeds, it may sample others."
    )

    def __init__(self, settings: GenerateSettings, model: str) -> None:
        if not settings.server:
            raise SimPOError("The engine is server, but there is none. Give its address as server.")
        self.model = settings.server_model or model
        self.server = Server(settings.server, settings.server_key_variable, settings.server_requests)
        # Prompts that the server has refused, which get no answers.
        self.left_out = 0
        self._settings = settings

    def check(self) -> None:
        """Check, before the work, that the server answers and has the model.

        Raises:
            SimPOError: it does not, or has not.
        """
        names = model_names(self.server, "/models") or []
        if self.model in names:
            return
        try:
            # There are servers that list the models of a cache, or none, but load any that is asked for.
            self.server.ask_once("/chat/completions", self._body([{"role": "user", "content": "Hello"}], max_tokens=1))
        except SimPOError as error:
            listed = self.server.shown(", ".join(names)) or "no models"
            meant = did_you_mean(self.model, names)
            raise SimPOError(
                f"{self.server.address} does not serve {self.model!r}; it lists {listed}.{meant} Name a model that it "
                f"serves as server_model. It said: {error}"
            ) from None

    def answers(self, prompts: Sequence[Prompt], is_done: Sequence[bool]) -> Iterator[list[Answered]]:
        """Yields each prompt once all its answers are there; one that the server refuses is left out, with a warning.

        Raises:
            SimPOError: the server fails again and again, refuses the key, or refuses all of the first prompts.
        """
        waiting = [prompt for prompt, done in zip(prompts, is_done, strict=True) if not done]
        seeds = self._settings.used_seeds
        found: dict[int, dict[int, Answer]] = {}
        refused: set[int] = set()
        all_same: list[bool] = []
        has_answered = any(is_done)

        def ask(request: tuple[int, int]) -> Answer | Refused | None:
            number, place = request
            return None if number in refused else self._ask(waiting[number], seeds[place])

        requests = [(number, place) for number in range(len(waiting)) for place in range(len(seeds))]
        for (number, place), answer in self.server.map(ask, requests):
            if isinstance(answer, Refused) and number not in refused:
                refused.add(number)
                found.pop(number, None)
                self._leave_out(answer)
                if not has_answered and len(refused) == min(_FIRST, len(waiting)):
                    raise answer
            if not isinstance(answer, Answer) or number in refused:
                continue
            own = found.setdefault(number, {})
            own[place] = answer
            if len(own) == len(seeds):
                has_answered = True
                in_order = [own[place] for place in range(len(seeds))]
                del found[number]
                self._note(all_same, in_order)
                yield [(waiting[number], in_order)]
        if self.left_out > _TOLD:
            logger.warning("The server refused %d prompts in all; they are left out.", self.left_out)

    def _ask(self, prompt: Prompt, seed: int) -> Answer | Refused:
        arguments = dict(prompt.template_kwargs)
        more: dict[str, Any] = {"seed": seed}
        if tools := arguments.pop("tools", None):
            # "none": the model sees the tools, and its answer stays the text that it writes, calls included.
            more |= {"tools": tools, "tool_choice": "none"}
        if arguments:
            more["chat_template_kwargs"] = arguments
        try:
            reply = self.server.post("/chat/completions", self._body(prompt.messages, **more))
        except Refused as error:
            if error.status in OF_ONE_REQUEST:
                return error
            raise
        return _answer_of(reply, self.server.address)

    def _body(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        settings = self._settings
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        return {
            "model": self.model,
            "messages": list(messages),
            **sampling,
            "max_tokens": settings.max_new_tokens,
            **more,
        }

    def _leave_out(self, error: Refused) -> None:
        self.left_out += 1
        if self.left_out <= _TOLD:
            logger.warning("A prompt is left out: %s", error)

    def _note(self, all_same: list[bool], answers: Sequence[Answer]) -> None:
        """Warn, once enough prompts have answers, if those of each are all the same although they should be sampled."""
        if len(answers) < 2 or self._settings.temperature == 0 or len(all_same) == _SAMPLES:
            return
        all_same.append(len({answer.text for answer in answers}) == 1)
        if len(all_same) == _SAMPLES and all(all_same):
            logger.warning(
                "All answers to a prompt are the same, for the first %d prompts: the server does not sample, whatever "
                "temperature is. Under `transformers serve`, set do_sample to true in the model's "
                "generation_config.json.",
                _SAMPLES,
            )


def _answer_of(reply: Mapping[str, Any], address: str) -> Answer:
    try:
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        reason = choice.get("finish_reason") or "unknown"
    except (KeyError, IndexError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise SimPOError(
            f"{address} answered a chat without the text of a message. Give the address of an OpenAI-compatible server "
            "as server."
        )
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Answer(text, str(reason), tokens if isinstance(tokens, int) else None)
