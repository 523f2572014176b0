"""Rows that cannot teach: why each was left out, and the report that counts them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SimPOError

# Why a row can teach nothing: the short name that is counted, what is wrong, and what the user can change.
REASONS: dict[str, tuple[str, str]] = {
    "missing_field": ("a field is missing (null)", "Fill the field in or remove these rows."),
    "wrong_type": (
        "a field is neither text nor a list of messages, or one row mixes the two",
        "Make prompt and answers strings, or all of them lists of {'role': ..., 'content': ...}; scores and ranks are "
        "lists of numbers.",
    ),
    "score_count": (
        "there are not as many scores (or ranks) as responses",
        "Write one for each response, in their order, null for an answer without one.",
    ),
    "bad_score": (
        "an answer's score (or rank) is missing or no finite number",
        "Fill it in, or remove the answer.",
    ),
    "no_pair": (
        "no two answers that can be used differ in rank and text",
        "Remove these rows, or look at why their answers cannot be used.",
    ),
    "tie": ("neither answer is the better one (a tie)", "Nothing need be done: a tie has nothing to teach."),
    "bad_message": ("a message lacks a role or a content that is text", "Give each message both, as strings."),
    "unread_messages": (
        "a text stands where messages are needed, or messages written as text cannot be read",
        "Write them as JSON (json.dumps in Python, not str), or the rows as JSON Lines or Parquet, where lists of "
        "messages stay what they are.",
    ),
    "media": (
        "the row has a picture, sound or film, and training reads text alone",
        "Remove these rows; or, if their texts stand alone, remove the column or content part, and the placeholders "
        "such as <image> in the text.",
    ),
    "no_prompt": (
        "there is no prompt, and nothing to start from in its place",
        "Add a prompt, or name the column that holds it: in a recipe by `columns: {prompt: its name}`, else by "
        "renaming it to 'prompt'. Texts without a prompt need a tokenizer with a bos_token.",
    ),
    "prompt_end": (
        "the prompt does not end with a user or tool message",
        "Move the message that is to be answered to the end of the prompt.",
    ),
    "no_user_turn": (
        "the prompt has no user message",
        "Add one, which the answer is to answer.",
    ),
    "answer_messages": (
        "an answer is not exactly one assistant message",
        "Put earlier turns into the prompt; if both answers hold the whole conversation, leave out the prompt column.",
    ),
    "empty_answer": ("an answer is empty", "Remove these rows."),
    "identical_answers": ("both answers are the same", "Remove these rows."),
    "identical_after_truncation": (
        "both answers are the same once cut to length",
        "Raise max_length.",
    ),
    "overlong": ("prompt + longer answer exceed max_length", "Raise max_length, or set overlong: truncate."),
    "end_token_inside": (
        "an answer holds the end token in the middle of its text",
        "Remove end tokens from the text of the answers; the one at the end is added.",
    ),
    "template_error": (
        "the chat template refuses the conversation",
        "Change the rows to what the template takes: many want user and assistant in turn; if it refuses system "
        "messages, set system_messages: merge (into the user message) or system_messages: drop.",
    ),
    "template_arguments": (
        "tools or chat_template_kwargs cannot be given to the chat template",
        "Write tools as a list of objects and chat_template_kwargs as an object, as {'enable_thinking': false}, or "
        "either as JSON text; leave out keys that a row cannot set.",
    ),
    "template_prefix": (
        "an answer does not fit behind the prompt with generation header",
        "For thinking models, use answers with the thinking part that the header begins, or without the one that it "
        "ends, or a column chat_template_kwargs with {'enable_thinking': false} (true) where the template knows it; "
        "else another chat_template.",
    ),
    "template_content": (
        "the chat template leaves out part of the answer",
        "Set chat_template to one that writes answers whole (one for tool calls, where an answer has them), or use "
        "answers without the part that it removes.",
    ),
    "template_end": ("the chat template ends this answer otherwise than others", "Make the roles and fields alike."),
}


class RowDropped(Exception):
    """A row that cannot be trained on, with its reason (a key of `REASONS`) and an optional detail for the reader."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def caught(function: Any, *args: Any) -> Any:
    """The function's result, or the `RowDropped` that it raised."""
    try:
        return function(*args)
    except RowDropped as dropped:
        return dropped


@dataclass
class Dropped:
    """Rows or answers left out for one reason: how many, the index of the first row, and what was seen there."""

    count: int
    first_row: int
    detail: str


@dataclass
class DropReport:
    """Counts of what tokenization did to the rows of a set. Lengths in tokens; cuts are those of rows that are kept."""

    name: str
    rows_read: int = 0
    rows_kept: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    truncated_prompts: int = 0
    truncated_answers: int = 0
    lost_tokens: int = 0  # of answers that were cut
    needed_length: int = 0  # the max_length that would cut no row
    one_sided_ends: int = 0  # rows of which some answers lost their end token, and others did not
    longest: int = 0  # prompt + longest answer
    ignored: dict[str, Dropped] = field(default_factory=dict)  # rows kept without a part of the prompt, by the part
    left_out: dict[str, Dropped] = field(default_factory=dict)  # answers that ranked rows were kept without
    second_renderings: Dropped | None = None  # rows kept with an answer that the chat template does not write as such
    ranked: bool = False
    pairs_kept: int = 0

    @property
    def unit(self) -> str:
        """The name of the set's rows, in the plural."""
        return "prompts" if self.ranked else "pairs"

    def count(self, row: int, notes: Mapping[str, Any]) -> bool:
        """Count a tokenized row.

        Args:
            row: its index in the set.
            notes: of a dropped row, `reason` and `detail`. Of a kept one, `pairs` (their number), `cut` (whether the
                prompt and each answer was), `lost` (tokens cut off its answers), `length` and `whole_length` (after and
                before the cut), and where there is cause `ignored` (a part of the prompt that the chat template does
                not write), `second` (why an answer got the second rendering) and `left_out` (the reason for each answer
                that was left out).

        Returns:
            Whether the row is kept.
        """
        self.rows_read += 1
        if notes["reason"] is not None:
            self.dropped.setdefault(notes["reason"], Dropped(0, row, notes["detail"])).count += 1
            return False
        prompt, *answers = notes["cut"]
        self.rows_kept += 1
        self.pairs_kept += notes["pairs"]
        self.truncated_prompts += prompt
        self.truncated_answers += sum(answers)
        self.lost_tokens += notes["lost"]
        self.needed_length = max(self.needed_length, notes["whole_length"])
        self.one_sided_ends += any(answers) and not all(answers)
        self.longest = max(self.longest, notes["length"])
        if part := notes.get("ignored"):
            self.ignored.setdefault(part, Dropped(0, row, "")).count += 1
        if why := notes.get("second"):
            self.second_renderings = self.second_renderings or Dropped(0, row, why)
            self.second_renderings.count += 1
        for reason in notes.get("left_out") or ():
            self.left_out.setdefault(reason, Dropped(0, row, "")).count += 1
        return True

    def lines(self) -> list[str]:
        """The report for a reader, a headline first."""
        pairs = f", {self.pairs_kept} pairs of their answers" if self.ranked else ""
        lines = [
            f"{self.name}: {self.rows_kept} of {self.rows_read} {self.unit}{pairs}; the longest has {self.longest} "
            f"tokens; cut to length: {self.truncated_prompts} prompts, {self.truncated_answers} answers"
        ]
        if self.truncated_answers:
            lines.append(
                f"  cut answers lose their end, {self.lost_tokens} tokens in all; max_length: {self.needed_length} "
                "would keep every row whole"
            )
        for reason, dropped in self.dropped.items():
            lines.append(f"  dropped {dropped.count} ({reason}, first row {dropped.first_row}): {REASONS[reason][0]}")
        for reason, answers in self.left_out.items():
            lines.append(
                f"  left out {answers.count} answers ({reason}, first row {answers.first_row}): {REASONS[reason][0]}"
            )
        for part, ignored in self.ignored.items():
            lines.append(f"  kept {ignored.count} (first row {ignored.first_row}) without {part}")
        return lines

    def summary(self) -> str:
        """The lines of the report as one text."""
        return "\n".join(self.lines())

    def check_none_overlong(self, max_length: int) -> None:
        """Refuse a set with rows that are too long.

        Raises:
            SimPOError: how many there are, and the first.
        """
        if dropped := self.dropped.get("overlong"):
            raise SimPOError(
                f"{self.name}: {dropped.count} of {self.rows_read} {self.unit} exceed max_length={max_length} (first: "
                f"row {dropped.first_row}, {dropped.detail}). Raise max_length, or set overlong: truncate or overlong: "
                "drop."
            )

    def check_none_dropped(self) -> None:
        """Refuse a set of which a row was left out.

        Raises:
            SimPOError: the first such row and why it cannot be used.
        """
        if not self.dropped:
            return
        reason, dropped = min(self.dropped.items(), key=lambda item: item[1].first_row)
        wrong, change = REASONS[reason]
        detail = f" ({dropped.detail})" if dropped.detail else ""
        raise SimPOError(
            f"{self.name}: row {dropped.first_row} cannot be used: {wrong}{detail}. {change} Or let such rows be left "
            "out with on_bad_row: drop."
        )

    def check_enough_kept(self) -> None:
        """Refuse a set of which more than half was left out: something is wrong with the data or the settings.

        Raises:
            SimPOError: with every reason, its count and its first row.
        """
        ties = self.dropped["tie"].count if "tie" in self.dropped else 0  # which are no mistake
        if 2 * self.rows_kept >= self.rows_read - ties and (self.rows_kept or not ties):
            return
        lines = [
            f"{self.name}: {self.rows_read - self.rows_kept} of {self.rows_read} {self.unit} cannot be trained on; at "
            "most half may be left out."
        ]
        for reason, dropped in self.dropped.items():
            wrong, change = REASONS[reason]
            detail = f" ({dropped.detail})" if dropped.detail else ""
            lines.append(f"  {dropped.count} ({reason}, first row {dropped.first_row}): {wrong}{detail}. {change}")
        raise SimPOError("\n".join(lines))
