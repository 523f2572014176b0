"""The quickstart's tokenizer and model: one token per word, and a Llama of about one million weights."""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<bos>", "<end>", "<user>", "<assistant>", "<unknown>"
SPECIAL_TOKENS = (PAD, BOS, END, USER, ASSISTANT, UNKNOWN)
TOKEN_PATTERN = r"\w+|[^\w\s]"
MAX_POSITIONS = 128

# Only an answer ends with the end token, so it occurs once per answer. The tokens of the prompt with the assistant's
# mark are exactly the first tokens of prompt and answer rendered together.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('The toy model knows the roles user and assistant only.') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are the words and punctuation marks of `texts`, in alphabetical order."""
    words = sorted({token for text in texts for token in re.findall(TOKEN_PATTERN, text)})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # a space before every token but the first
            decoders.Fuse(),
            *(
                decoders.Replace(spaced, plain)
                for spaced, plain in ((" ,", ","), (" :", ":"), ("[ ", "["), (" ]", "]"))
            ),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns an untrained float32 model for this tokenizer; torch's global generator draws its weights."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        # Larger initial weights and faster rotations than in a large model: with the usual 0.02 and 10,000, so small a
        # model learns much less in the same warm-up about the positions of words in these short texts.
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model
