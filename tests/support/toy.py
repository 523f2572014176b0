"""Small tokenizers and preference rows, made in code: no files, no network."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Merges of the byte-level BPE: words in a few tokens, and two merges that reach over boundaries that tests set: two
# line breaks become one token, and so do a space and the letter behind it.
_MERGES = [
    ("Ċ", "Ċ"),
    *((("Ġ", letter)) for letter in "abcdefghijklmnopqrstuvwxyz"),
    ("t", "h"),
    ("th", "e"),
    ("i", "s"),
]


def toy_tokenizer(
    chat_template: str | None = CHATML,
    *,
    bos: str | None = "<s>",
    eos: str | None = "<|im_end|>",
    adds_bos: bool = True,
    adds_eos: bool = False,
    special_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 300 tokens; like many, it puts BOS (and EOS, if asked) around plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in _MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=list(special_tokens),
        chat_template=chat_template,
    )
    before = [bos] if bos and adds_bos else []
    after = [eos] if eos and adds_eos else []
    if before or after:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in [*before, *after]],
        )
    return tokenizer


def toy_tokenizer_without_template(**options: Any) -> PreTrainedTokenizerFast:
    """The same tokenizer without a chat template."""
    return toy_tokenizer(None, **options)


def toy_word_tokenizer(chat_template: str | None = None, *, old: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner: it writes a space as "▁", and puts one before the first word of a text.

    The `old` one puts it behind every special token too, as those of Llama 2 and the first Mistral models do.
    """
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "▁", "\n", *letters])}
    merges = [("▁", letter) for letter in letters]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    if old:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat_template
    )


class ToySlowTokenizer(PreTrainedTokenizer):
    """One token a character, in Python: a tokenizer without a backend of the `tokenizers` library."""

    adds_bos = False

    def __init__(self, **options: Any) -> None:
        self._characters = {chr(code): code for code in range(128)}
        super().__init__(bos_token="<s>", eos_token="<|im_end|>", unk_token="?", **options)

    @property
    def vocab_size(self) -> int:
        return len(self._characters)

    def get_vocab(self) -> dict[str, int]:
        return {**self._characters, **self.added_tokens_encoder}

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return ([self.bos_token_id] if self.adds_bos else []) + token_ids_0

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def _convert_token_to_id(self, token: str) -> int:
        return self._characters.get(token, ord("?"))

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def toy_pairs(count: int, *, conversational: bool = False) -> list[dict[str, Any]]:
    """`count` different pairs on adding numbers, of uneven lengths; as text, or as message lists."""
    rows = []
    for i in range(count):
        prompt = f"What is {i} and {i % 7}?" + " Think first." * (i % 3)
        chosen = f"The sum is {i + i % 7}." + " Sure." * (i % 4)
        rejected = f"I guess {i * 3 + 1}" + ", or so" * (i % 5)
        if conversational:
            rows.append({"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]})
        else:
            rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return rows
