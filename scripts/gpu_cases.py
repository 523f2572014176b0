"""What `make gpu` measures: the cases, the one that is worth most first, since time may run out before the last."""

from dataclasses import dataclass
from importlib.util import find_spec

from bench_rows import backbone_parameters, model_shape

VOCAB = 128256
# Lengths of pairs, their number in a step, steps in a pass, and passes after one for warm-up.
_AMOUNT = ("--profile", "ultrafeedback", "--pairs", "8", "--steps", "4", "--repeats", "2")
# Instead of the shapes, to try it all out without a card: heads of four numbers, pairs of a few tokens.
_TINY = ("--hidden", "128", "--layers", "2", "--vocab", "500", "--max-length", "64", "--pairs", "4")
_TINY_AMOUNT = ("--steps", "2", "--repeats", "1", "--device", "cpu")
# Kind of training to its options. Without recomputation, the activations of 8b alone would fill a card.
_TRAINING: dict[str, tuple[str, ...]] = {"full": (), "LoRA": ("--lora",), "QLoRA": ("--qlora",)}
_RECOMPUTED = {"8b": ("--gradient-checkpointing",)}
# Float32 weights, their gradients, and the two averages that AdamW keeps of those.
_BYTES_A_WEIGHT = 16
TRL, PACKED, SHARED, PADDED = "trl CPO", "ours, packed", "ours, shared_prefix", "ours, padded"


@dataclass(frozen=True)
class Case:
    """A row of a table.

    Args:
        model: its shape, "1b" (Llama-3.2-1B's) or "8b" (Llama-3.1-8B's).
        training: "full", "LoRA" or "QLoRA".
        row: trl, or a layout of ours.
    """

    model: str
    training: str
    row: str
    attention: str = "sdpa"

    @property
    def group(self) -> str:
        """The table that it stands in: rows of one table train the same weights on the same pairs."""
        return f"{self.model}, {self.training}"

    @property
    def name(self) -> str:
        """Unlike that of all others."""
        return f"{self.group}: {self.row}, {self.attention}"

    def words(self, tiny: bool = False) -> list[str]:
        """The options with which `scripts/benchmark.py` measures this case."""
        amount = (*_TINY, *_TINY_AMOUNT) if tiny else ("--vocab", str(VOCAB), *_AMOUNT)
        kind = (*_TRAINING[self.training], *_RECOMPUTED.get(self.model, ()))
        return ["--model", self.model, *amount, *kind, "--attention", self.attention, "--rows", self.row]


FLEX, FLASH = "flex_attention", "flash_attention_2"
CASES = (
    Case("1b", "full", PACKED),
    Case("1b", "full", TRL),
    Case("1b", "LoRA", PACKED),
    Case("1b", "LoRA", TRL),
    Case("8b", "LoRA", PACKED),
    Case("8b", "QLoRA", PACKED),
    Case("1b", "full", PACKED, FLEX),
    Case("1b", "full", PACKED, FLASH),
    Case("1b", "full", SHARED),
    Case("1b", "full", PADDED),
    Case("8b", "LoRA", PADDED),
    Case("8b", "QLoRA", PADDED),
    Case("8b", "LoRA", PACKED, FLASH),
    Case("8b", "LoRA", PACKED, FLEX),
    Case("8b", "LoRA", TRL),
    Case("1b", "LoRA", SHARED),
    Case("1b", "LoRA", PADDED),
    Case("8b", "LoRA", SHARED),
    Case("8b", "QLoRA", SHARED),
)
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
# Package to what is not measured without it.
_NEEDS = {"flash_attn": FLASH, "bitsandbytes": "QLoRA", "trl.experimental.cpo": TRL}


def lacks(case: Case) -> str | None:
    """The package that a case needs and that is not installed; None where it can be measured."""
    traits = (case.attention, case.training, case.row)
    return next((package for package, trait in _NEEDS.items() if trait in traits and not _is_there(package)), None)


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would lie in is not there
        return False


def left_out() -> str:
    """Why no case trains all of 8b, with the memory that it would take."""
    weights = parameters("8b")
    size = weights * _BYTES_A_WEIGHT / 2**30
    return (
        f"8b, full: left out. {weights / 1e9:.2f} billion weights of {_BYTES_A_WEIGHT} bytes (float32, gradient, two "
        f"averages of AdamW)\nare {size:.0f} GiB before any activation; it takes several cards."
    )


def parameters(model: str, vocab: int = VOCAB) -> int:
    """The number of weights of a shape, a tied one counted once."""
    shape = model_shape(model, vocab, 2048, None, None)
    tables = 1 if shape["tie_word_embeddings"] else 2
    return backbone_parameters(shape) + tables * vocab * shape["hidden_size"]
