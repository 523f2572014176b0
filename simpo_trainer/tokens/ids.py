"""Token ids beside the embeddings of the model: one that has none would end the run where its row comes up."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SimPOError
from .rows import id_columns, row_answers
from .sets import TokenSet

_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
_BELONGING = (
    "the tokenizer that belongs to the model (tokenizer_name_or_path in a recipe, processing_class of a trainer)"
)


def count_embeddings(model: PreTrainedModel | PeftModel) -> int | None:
    """The number of a model's token embeddings, whole or scattered, with or without an adapter; None if unknown."""
    try:
        embedding: Any = model.get_input_embeddings()
    except NotImplementedError:
        return None
    count = getattr(embedding, "num_embeddings", None)
    if count is None and (weight := getattr(embedding, "weight", None)) is not None:
        # ZeRO-3 leaves an empty tensor and keeps the shape of the whole beside it.
        count = (getattr(weight, "ds_shape", None) or weight.shape)[0]
    return count


@dataclass(frozen=True)
class TokenIds:
    """Refuses ids that are none of the model's: below 0, or not below `embeddings` (None: nothing is known of those).

    The tokenizer may have more tokens than that, as many a published one has, where no row contains them.
    """

    tokenizer: PreTrainedTokenizerBase
    embeddings: int | None

    @property
    def pad_id(self) -> int:
        """The id to pad with. Any serves, because padding is masked by length: a missing pad token needs no new one."""
        return next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    def check_pad_token(self, instead: str | None = None) -> None:
        """Refuse a pad token without an embedding: padding is masked, but looked up, and the saved tokenizer keeps it.

        Args:
            instead: the token to pad with in place of the tokenizer's own.

        Raises:
            SimPOError: the model has no embedding for it, or for the end token where that has to serve.
        """
        own, end = instead or self.tokenizer.pad_token, self.tokenizer.eos_token
        token = own or end
        number = self._vocabulary.get(str(token)) if token else None
        if number is None or self._holds(number):
            return
        what = "pad token" if own else "end token, which stands in for the missing pad token,"
        other = ""
        if end and self._holds(self.tokenizer.eos_token_id):
            other = f", or pad with a token that the model has, such as the end token {end!r} (tokenizer.pad_token)"
        raise SimPOError(f"The {what} is {token!r} with the id {number}, and {self._limit}. {self._remedy}{other}.")

    def check_set(self, found: TokenSet) -> None:
        """Refuse a set with an id that is none of the model's; a stream is checked as it is read.

        Raises:
            SimPOError: names the first such row, its token, and what to do.
        """
        if found.streamed or (outside := self._first_outside(found.rows)) is None:
            return
        index, number = outside
        raise self._refusal(f"{found.name}: row {found.source_row(index)}", number)

    def check_prepared(self, rows: Any, name: str) -> None:
        """Like :meth:`check_set`, for rows as a trainer of trl takes them; those of a stream pass."""
        if hasattr(rows, "__len__") and (outside := self._first_outside(rows)) is not None:
            raise self._refusal(f"{name}: row {outside[0]}", outside[1])

    def check_streamed(self, row: Mapping[str, Any], number: int, name: str, *, own_ids: bool) -> None:
        """Like :meth:`check_set`, for a single token row of a stream.

        Args:
            number: of the row in the stream.
            own_ids: whether the row came as token ids, which need not be the tokenizer's.
        """
        if (own_ids or not self._holds_all) and (outside := self._outside_row(row)) is not None:
            raise self._refusal(f"{name}: row {number} of the stream", outside)

    def _holds(self, number: int) -> bool:
        return self.embeddings is None or 0 <= number < self.embeddings

    @cached_property
    def _holds_all(self) -> bool:
        """Returns whether the model has embeddings for all tokens of the tokenizer."""
        return all(map(self._holds, self._vocabulary.values()))

    @property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    # ---- Finding ----

    def _first_outside(self, rows: Any) -> tuple[int, int] | None:
        """Returns the index of the first row with an id that is none of the model's, and the id."""
        if not isinstance(rows, Dataset):
            return next(
                ((i, found) for i, row in enumerate(rows) if (found := self._outside_row(row)) is not None), None
            )
        start = 0
        # Where the ids lie, a piece at a time: no row is made into Python's numbers.
        for table in rows.select_columns(id_columns(rows.column_names)).with_format("arrow").iter(batch_size=10_000):
            if self._outside_table(table) is not None:
                each = ((start + i, self._outside_table(table.slice(i, 1))) for i in range(len(table)))
                return next((index, found) for index, found in each if found is not None)
            start += len(table)
        return None

    def _outside_table(self, table: pa.Table) -> int | None:
        for ids in table.columns:
            while isinstance(ids.type, _LISTS):
                ids = pc.list_flatten(ids)
            for number in pc.min_max(ids).as_py().values():
                if number is not None and not self._holds(number):
                    return number
        return None

    def _outside_row(self, row: Mapping[str, Any]) -> int | None:
        texts = [row["input_ids"]] if id_columns(row) == ["input_ids"] else [row["prompt_ids"], *row_answers(row)]
        extremes = ((min(ids), max(ids)) for ids in texts if len(ids))
        return next((int(number) for both in extremes for number in both if not self._holds(number)), None)

    # ---- Saying ----

    def _refusal(self, where: str, number: int) -> SimPOError:
        token = next((token for token, own in self._vocabulary.items() if own == number), None)
        if token is not None:
            return SimPOError(
                f"{where} has the token {token!r} with the id {number}, and {self._limit}. {self._remedy}."
            )
        return SimPOError(
            f"{where} has the id {number}, which is no token of the tokenizer, and {self._limit}. Were the ids made by "
            f"another tokenizer? Make them with {_BELONGING}, or correct or remove the row."
        )

    @property
    def _limit(self) -> str:
        return f"the model has {self.embeddings} embeddings, for the ids below {self.embeddings}"

    @property
    def _remedy(self) -> str:
        # Where a vocabulary has gaps, its largest id says how many are needed.
        needed = max(self._vocabulary.values()) + 1
        size = "len(tokenizer)" if needed <= len(self.tokenizer) else str(needed)
        return (
            "Tokens were added to the tokenizer and not to the model: call "
            f"model.resize_token_embeddings({size}) and save the model, or use {_BELONGING}"
        )
