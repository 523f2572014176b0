"""The scorer that is a reward model: a transformer with one number as its output, which runs here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from ..data.drops import RowDropped
from ..data.messages import row_template_kwargs
from ..errors import SimPOError, first_line
from ..log import get_logger
from ..recipe.answer_keys import AnnotateSettings
from .failures import Failures
from .reward_files import RewardFiles, find_reward_model, not_loaded
from .scorer import Row, Scored

logger = get_logger(__name__)

# Rows are handed on, to be written to the disk, once they fill so many batches.
_BATCHES = 8


@dataclass(frozen=True)
class _Conversation:
    """The token ids of a prompt with an answer, and where its score belongs."""

    row: int
    answer: int
    ids: list[int]


class RewardScorer:
    """Scores answers by a model for sequence classification with one label, or one whose own code gives a `score`.

    The model reads prompt and answer in its own chat template.

    Args:
        settings: name the model, its revision, how many answers it reads at once, and the longest.

    Raises:
        SimPOError: there is no such model, it gives no score, has no chat template, or brings code that may not run.
    """

    def __init__(self, settings: AnnotateSettings) -> None:
        self._name = str(settings.reward_model)
        self._files = find_reward_model(settings)
        self._tokenizer = _load_tokenizer(self._name, self._files)
        self._longest = _longest(self._name, self._files.config, settings.max_length)
        self._batch_size = settings.batch_size
        # The padding token that the model knows.
        self._pad: int | None = self._files.config.get_text_config().pad_token_id
        self._model: Any = None
        self.identity: dict[str, Any] = {
            "scorer": "reward model",
            "name": self._files.label,
            "fingerprint": self._files.fingerprint,
            "max_length": self._longest,
        }

    def scores(self, rows: Sequence[Row]) -> Iterator[list[Scored]]:
        """Yields rows with the scores of their answers; those that cannot be read are None, with a warning.

        Rows are read in an order of their own, the shortest first, so that what is left of them after a kill makes the
        same batches.

        Raises:
            SimPOError: the model cannot be loaded, gives no score, or has not the memory for a batch.
        """
        self._model = self._model or _load_model(self._name, self._files)
        failures = Failures("cannot be read by the reward model")
        for group in _groups(sorted(rows, key=_size), _BATCHES * self._batch_size):
            found: list[list[float | None]] = [[None] * len(row["answers"]) for row in group]
            conversations = sorted(self._conversations(group, failures), key=lambda each: len(each.ids))
            for start in range(0, len(conversations), self._batch_size):
                batch = conversations[start : start + self._batch_size]
                for each, score in zip(batch, self._read([each.ids for each in batch]), strict=True):
                    found[each.row][each.answer] = score
            yield list(zip(group, found, strict=True))
        failures.tell_rest()

    def _conversations(self, rows: Sequence[Row], failures: Failures) -> Iterator[_Conversation]:
        for number, row in enumerate(rows):
            for place, answer in enumerate(row["answers"]):
                try:
                    ids = self._ids(row, answer)
                except Exception as error:  # a template raises what it wants
                    why = error.detail if isinstance(error, RowDropped) else first_line(error)
                    failures.tell(row, f"its chat template refuses it ({why})")
                    continue
                if self._longest and len(ids) > self._longest:
                    failures.tell(
                        row, f"it has {len(ids):,} tokens with its prompt; at most {self._longest:,} are read"
                    )
                    continue
                yield _Conversation(number, place, ids)

    def _ids(self, row: Row, answer: str) -> list[int]:
        messages = [*row["prompt"], {"role": "assistant", "content": answer}]
        tools = row_template_kwargs({"tools": row.get("tools")})
        return self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **tools)

    def _read(self, ids: Sequence[list[int]]) -> list[float]:
        """Returns the scores of conversations, which the model reads at once."""
        pad = _settle_padding(self._model.config, ids) if self._pad is None else self._pad
        length = max(map(len, ids))
        inputs = {
            "input_ids": torch.tensor([[*each, *[pad] * (length - len(each))] for each in ids]),
            "attention_mask": torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in ids]),
        }
        try:
            with torch.inference_mode():
                output = self._model(**{name: values.to(self._model.device) for name, values in inputs.items()})
        except torch.OutOfMemoryError as error:
            raise SimPOError(
                f"The memory does not suffice for {len(ids)} answers of up to {length:,} tokens at once. Lower "
                "batch_size and give the same command again: what was scored before is kept."
            ) from error
        return _scores_of(self._name, output, len(ids))


def _scores_of(name: str, output: Any, count: int) -> list[float]:
    own = getattr(output, "score", None)
    scores = output.logits if own is None else own
    if scores.numel() != count:
        raise SimPOError(
            f"The reward model {name!r} gives {scores.numel() // count} numbers for an answer and no `score`; it must "
            "give one. Set reward_model to a model with num_labels 1."
        )
    return scores.float().flatten().tolist()


def _settle_padding(config: PretrainedConfig, ids: Sequence[list[int]]) -> int:
    """Returns the token that fills up conversations for a model without a padding token, and lets the model know it.

    Models read the score at the last token that is not the padding; without one, at the last token. So the token is one
    that no conversation ends with; it is masked, so any other will do.
    """
    last = {each[-1] for each in ids}
    text_config = config.get_text_config()
    free = next(token for token in range(text_config.vocab_size) if token not in last)
    config.pad_token_id = text_config.pad_token_id = free
    return free


def _size(row: Mapping[str, Any]) -> tuple[int, str]:
    """Returns a key to sort rows by: about the length of its longest conversation, then its key."""
    prompt = sum(len(str(message.get("content"))) for message in row["prompt"])
    return prompt + max(map(len, row["answers"])), row["key"]


def _groups(rows: Sequence[Row], answers: int) -> Iterator[list[Row]]:
    """Yields rows in groups of at least so many answers, but for the last."""
    group: list[Row] = []
    count = 0
    for row in rows:
        group.append(row)
        count += len(row["answers"])
        if count >= answers:
            yield group
            group, count = [], 0
    if group:
        yield group


# --- Loading ----------------------------------------------------------------------------------------------------------


def _load_tokenizer(name: str, files: RewardFiles) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.place, **files.arguments)
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(name, error) from error
    if not tokenizer.chat_template:
        raise SimPOError(
            f"The reward model {name!r} has no chat template, so nothing says how it reads a conversation. Add the one "
            "that it was trained with to its folder (chat_template.jinja)."
        )
    return tokenizer


def _longest(name: str, config: PretrainedConfig, max_length: int | None) -> int | None:
    """Returns the tokens of the longest conversation that is read; None where nothing limits it."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if max_length and positions and max_length > positions:
        raise SimPOError(
            f"max_length is {max_length:,}, but the reward model {name!r} has {positions:,} positions. Lower it, or "
            "remove it."
        )
    return max_length or positions


def _load_model(name: str, files: RewardFiles) -> Any:
    """Returns the model with its weights, on the accelerator if there is one.

    Raises:
        SimPOError: it cannot be loaded, or weights are missing, which would be random.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    loader: Any = AutoModelForSequenceClassification
    try:
        model, found = loader.from_pretrained(
            files.place,
            # As it was saved; a CPU is slow in 16 bits.
            dtype="auto" if device else torch.float32,
            output_loading_info=True,
            **files.arguments,
        )
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(name, error) from error
    if missing := sorted(found["missing_keys"]):
        raise SimPOError(
            f"The reward model {name!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}), which would be "
            "random, and its scores too. Set reward_model to a model for sequence classification with all its weights."
        )
    return model.to(device or "cpu").eval()
