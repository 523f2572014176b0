"""The Hub: check the credentials before a run, and keep private data of this machine out of a push.

transformers uploads the output folder as it is, with the token and all paths in `training_args.bin`. Here the files are
first put into another folder, as links or, if they are texts, as copies without private paths and tokens.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id
from transformers import TrainingArguments

from ..errors import SimPOError, first_line
from ..record.folders import CURVES, MANIFEST, STATE
from ..record.pair_scores import SCORES_FILE
from ..record.seal import SEAL

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
# All that is pushed of a run's folder. Whatever else lies there stays: answers that the model wrote, reports with rows
# of the data, files of the user's own. An adapter with a name has a folder of its own; code is that of a model loaded
# with trust_remote_code.
PUSHED = [
    *MODEL_FILES,
    "*/adapter_config.json",
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.model", "*.jinja", "preprocessor_config.json", "processor_config.json"),
    *("configuration_*.py", "modeling_*.py", "tokenization_*.py"),
    *("README.md", CURVES, MANIFEST, STATE, "*_results.json"),
]
# The same in few words, for a command that is shown: what may hold rows (.jsonl, .html) stays.
_BY_HAND = ["*.safetensors", "*.json", "README.md", "*.png", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
# Files that are not pushed of a checkpoint, nor of the folders in a run's folder: those that are useful only here, and
# a pickle that holds paths of this machine and can run code when it is loaded (run_manifest.json holds the settings as
# text). The seal is of files as they are here; texts are pushed as cleaned copies. Scores name the sources of rows.
LEFT_OUT = ["_*", "checkpoint-*", "training_args.bin", "runs/*", SEAL, SCORES_FILE]
# Texts in which nothing may be replaced: a path in a vocabulary is a word.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"}
_TEXTS = {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml"}


def check_credentials(args: TrainingArguments) -> None:
    """Check that the Hub can be reached and accepts the token, if `push_to_hub` is true.

    Raises:
        SimPOError: there is no token, the Hub does not accept it or cannot be reached, or the repository's name is
            wrong.
    """
    if not args.push_to_hub:
        return
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        key = "hub_model_id" if args.hub_model_id else "output_dir, which names the repository,"
        raise SimPOError(f"{key} is {name!r}, not a name for the Hub: {error} Set hub_model_id: user/name.") from None
    token = args.hub_token or get_token()
    if token is None:
        raise SimPOError(
            "push_to_hub is true, but there is no token of the Hub here. Run `hf auth login` or set the environment "
            "variable HF_TOKEN to a token with write access, or set push_to_hub: false."
        )
    if args.process_index == 0:  # one request is enough, and the Hub limits their number
        _check_token(token)


def _check_token(token: str) -> None:
    remedy = "push later with `hf upload`: set push_to_hub: false"
    try:
        user = HfApi().whoami(token=token)
    except OfflineModeIsEnabled:
        raise SimPOError(f"push_to_hub is true, but HF_HUB_OFFLINE=1 forbids the Hub. Unset it, or {remedy}.") from None
    except Exception as error:  # the libraries have many different errors for failures of the network
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise SimPOError(
                f"push_to_hub is true, but the Hub ({constants.ENDPOINT}) does not accept the token: "
                f"{first_line(error)}. Run `hf auth login` with a valid token with write access, or set HF_TOKEN to "
                "one, or set push_to_hub: false."
            ) from None
        raise SimPOError(
            f"push_to_hub is true, but the Hub ({constants.ENDPOINT}) cannot be reached: {first_line(error)}. Check "
            f"the network (and HF_ENDPOINT), or {remedy}."
        ) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SimPOError(
            "push_to_hub is true, but the token of the Hub may only read. Make one with write access at "
            "https://huggingface.co/settings/tokens and run `hf auth login`, or set push_to_hub: false."
        )


def stage_files(
    source: Path,
    target: Path,
    hidden: Mapping[str, str],
    *,
    only: list[str] | None = None,
    left_out: list[str] = LEFT_OUT,
) -> None:
    """Put the files of a folder into another and replace files there: texts as cleaned copies, others as links.

    Args:
        source: the folder to read.
        target: the folder to write.
        hidden: private texts, and the text to write instead of each.
        only: patterns of the files to take; None for all.
        left_out: patterns of files to leave out.
    """
    files = [file for file in source.rglob("*") if file.is_file()]
    names = [file.relative_to(source).as_posix() for file in files]
    for name in filter_repo_objects(names, allow_patterns=only, ignore_patterns=[*left_out, *DEFAULT_IGNORE_PATTERNS]):
        file, copy = source / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        if file.suffix in _TEXTS and file.name not in _VOCABULARIES:
            content = file.read_bytes()
            for private, public in hidden.items():
                content = content.replace(private.encode(), public.encode())
            copy.write_bytes(content)
        else:
            _link(file, copy)


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, copy)


def push_later(repo: str, folder: Path) -> str:
    """Returns the shell command that uploads the files of a failed push."""
    words = ["hf", "upload", repo, str(folder), *(word for pattern in _BY_HAND for word in ("--include", pattern))]
    words += [word for pattern in LEFT_OUT for word in ("--exclude", pattern)]
    return shlex.join(words)
