"""The scorer that asks a server with a reward model, by the route /pooling of vLLM."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..answers.server import OF_ONE_REQUEST, Refused, Server, model_names
from ..data.messages import row_template_kwargs
from ..errors import SimPOError, did_you_mean
from ..log import get_logger
from ..recipe.answer_keys import AnnotateSettings
from .scorer import Row, Scored

logger = get_logger(__name__)

# With so many answers refused and none scored, it is not the answers.
_FIRST = 20
_TOLD = 3
# Below the address of the server itself; its models are below /v1, the scores are not.
_ROUTE = "/pooling"


class ServerScorer:
    """Scores answers by a reward model at a server.

    Args:
        settings: the server and its model.

    Raises:
        SimPOError: the server cannot be used or reached, or does not have the model.
    """

    def __init__(self, settings: AnnotateSettings) -> None:
        if not settings.server:
            raise SimPOError("The scores are to come from a server, but there is none. Give its address as server.")
        base = settings.server.rstrip("/").removesuffix("/v1")
        self.server = Server(base, settings.server_key_variable, settings.server_requests)
        self.model = self._model(settings.server_model)
        self.identity = {"scorer": "server", "model": self.model}
        # Answers without a score.
        self.unscored = 0
        self._told_tools = False

    def scores(self, rows: Sequence[Row]) -> Iterator[list[Scored]]:
        """Yields each row once all its answers have a score, or None where the model gives none.

        Raises:
            SimPOError: the server fails again and again, refuses the key or all of the first answers, or gives
                something else than a number for an answer.
        """
        for row in rows:
            if not row["answers"]:
                yield [(row, [])]
        requests = [(number, place) for number, row in enumerate(rows) for place in range(len(row["answers"]))]
        found: dict[int, dict[int, float | None]] = {}
        scored = 0
        for (number, place), score in self.server.map(lambda both: self._ask(rows[both[0]], both[1]), requests):
            row = rows[number]
            if isinstance(score, float):
                scored += 1
            else:
                self._tell(row, place, score)
                if isinstance(score, Refused) and not scored and self.unscored == min(_FIRST, len(requests)):
                    raise score
            own = found.setdefault(number, {})
            own[place] = score if isinstance(score, float) else None
            if len(own) == len(row["answers"]):
                del found[number]
                yield [(row, [own[place] for place in range(len(own))])]
        if self.unscored > _TOLD:
            logger.warning("%d answers in all have no score.", self.unscored)

    def _ask(self, row: Row, place: int) -> float | Refused | None:
        arguments = row_template_kwargs(row)
        messages = [*row["prompt"], {"role": "assistant", "content": row["answers"][place]}]
        # vLLM takes a model's number through a sigmoid by default, and gives one for each token where it can.
        body: dict[str, Any] = {"model": self.model, "messages": messages, "task": "classify", "use_activation": False}
        if tools := arguments.pop("tools", None):
            body["tools"] = tools
            self._tell_tools()
        if arguments:
            body["chat_template_kwargs"] = arguments
        try:
            reply = self.server.post(_ROUTE, body)
        except Refused as error:
            if error.status in OF_ONE_REQUEST:
                return error
            raise
        return _score_of(reply, f"{self.server.address}{_ROUTE}")

    def _model(self, name: str | None) -> str:
        names = model_names(self.server, "/v1/models")
        if name is None:
            if not names:
                raise SimPOError(f"{self.server.address} lists no models. Name its reward model as server_model.")
            return names[0]
        if names and name not in names:
            listed = self.server.shown(", ".join(names))
            raise SimPOError(
                f"{self.server.address} has no model {name!r}; it lists {listed}.{did_you_mean(name, names)} Give one "
                "of them as server_model."
            )
        return name

    def _tell(self, row: Row, place: int, score: Refused | None) -> None:
        self.unscored += 1
        if self.unscored <= _TOLD:
            why = str(score) if score is not None else "the server's score is not a number"
            logger.warning("Answer %d of the row %s gets no score: %s.", place + 1, row["key"], why.rstrip("."))

    def _tell_tools(self) -> None:
        if not self._told_tools:
            self._told_tools = True
            logger.warning(
                "Rows have tools, which are sent as `tools`; the route %s of vLLM scores without them.", _ROUTE
            )


def _score_of(reply: Mapping[str, Any], address: str) -> float | None:
    """Returns the number of a reply; None for one that is not finite."""
    try:
        score = reply["data"][0]["data"]
    except (KeyError, IndexError, TypeError):
        raise SimPOError(
            f"{address} answered without data. Give the address of a server with vLLM's route /pooling as server."
        ) from None
    while isinstance(score, list) and len(score) == 1:
        score = score[0]
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        came = f"{len(score)} numbers" if isinstance(score, list) else type(score).__name__
        raise SimPOError(
            f"{address} gave {came} for an answer; a score is one number. Serve a reward model for sequence "
            "classification with one label."
        )
    return float(score) if math.isfinite(score) else None
