"""The files of a reward model: where they are, whether they bring code that may run, and what identifies them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from ..answers.model_source import source_fingerprint
from ..errors import SimPOError
from ..model.network import settle_network
from ..recipe.answer_keys import AnnotateSettings
from ..record.privacy import public_label, without_tokens

_CLASS = "AutoModelForSequenceClassification"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Characters of a library's message that are shown.
_LONGEST = 400


@dataclass(frozen=True)
class RewardFiles:
    """A reward model that was found.

    `place` is its folder or Hub name. `arguments` are those of every `from_pretrained`: the revision, and leave to run
    code where that was given. `label` and `fingerprint` tell which model it is, without a path of this machine.
    """

    place: str
    arguments: dict[str, Any]
    config: PretrainedConfig
    runs_code: bool
    label: str
    fingerprint: str


def find_reward_model(settings: AnnotateSettings) -> RewardFiles:
    """Returns the reward model that the settings name; its weights are not loaded yet.

    Raises:
        SimPOError: there is none under that name, it has no head for scores, or it brings code that may not run.
    """
    name = str(settings.reward_model)
    folder = Path(name).expanduser()
    is_local = folder.is_dir()
    _check_name(name, folder)
    if is_local and settings.reward_revision:
        raise SimPOError(f"reward_revision is given, but {name!r} is a folder here, which has none. Remove it.")
    settle_network([name])
    place = str(folder.resolve()) if is_local else name
    arguments: dict[str, Any] = {"revision": settings.reward_revision} if settings.reward_revision else {}
    try:
        written, _ = PretrainedConfig.get_config_dict(place, **arguments)
        runs_code = _brings_code(written)
        if runs_code:
            _check_code(settings, written, is_local)
            arguments |= {"code_revision": settings.reward_revision} if settings.reward_revision else {}
        arguments["trust_remote_code"] = runs_code
        config = AutoConfig.from_pretrained(place, **arguments)
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(name, error) from error
    if not runs_code:
        _check_head(name, config)
    fingerprint = source_fingerprint(place) if is_local else str(getattr(config, "_commit_hash", None))
    return RewardFiles(place, arguments, config, runs_code, public_label(name), fingerprint)


def not_loaded(name: str, error: Exception) -> SimPOError:
    """Returns the error for a reward model that could not be loaded, whatever a library raised."""
    if isinstance(error, SimPOError):
        return error
    reason = without_tokens(" ".join(str(error).split())[:_LONGEST].rstrip(".")) or type(error).__name__
    return SimPOError(
        f"The reward model {name!r} could not be loaded: {reason}. reward_model must be a folder made by "
        "save_pretrained, or a name on the Hub (for a private one, log in with `hf auth login`)."
    )


def _check_name(name: str, folder: Path) -> None:
    looks_local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not folder.is_dir() and (looks_local or folder.exists()):
        raise SimPOError(f"The reward model {name!r} does not exist or is not a folder. Correct reward_model.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        adapter = " Merge the adapter in it with its base first." if (folder / "adapter_config.json").is_file() else ""
        raise SimPOError(f"The folder {name!r} holds no config.json, so it is no reward model.{adapter}")


def _brings_code(written: dict[str, Any]) -> bool:
    """Returns whether the model cannot be loaded without the code that comes with it."""
    own = written.get("auto_map") or {}
    return _CLASS in own or ("AutoConfig" in own and written.get("model_type") not in CONFIG_MAPPING)


def _check_code(settings: AnnotateSettings, written: dict[str, Any], is_local: bool) -> None:
    """Check that the code of the model may run, and that it is the code that was read.

    Raises:
        SimPOError: it is not allowed, or may be other code.
    """
    name = settings.reward_model
    is_commit = bool(_COMMIT.fullmatch(settings.reward_revision or ""))
    if settings.trust_remote_code != name or not (is_local or is_commit):
        revision = (
            "" if is_local else ", and reward_revision: COMMIT, the 40 hex digits of the commit that you have read"
        )
        found = f"; trust_remote_code is {settings.trust_remote_code!r}" if settings.trust_remote_code else ""
        found += f"; reward_revision is {settings.reward_revision!r}" if settings.reward_revision else ""
        raise SimPOError(
            f"The reward model {name!r} brings Python code that would run here{found}. Read that code; to run it, set "
            f"trust_remote_code: {name}{revision}."
        )
    if elsewhere := [str(each) for each in written["auto_map"].values() if "--" in str(each)]:
        raise SimPOError(
            f"The reward model {name!r} takes its code from another repository ({elsewhere[0].split('--')[0]}), whose "
            "commit nothing fixes. Copy model and code into one folder, and name the code in its config.json without "
            "the repository."
        )


def _check_head(name: str, config: PretrainedConfig) -> None:
    """Check that the configuration is of a model with one score.

    Raises:
        SimPOError: it is of another kind.
    """
    classes = config.architectures or []
    if other := [each for each in classes if "CausalLM" in each or "ConditionalGeneration" in each]:
        raise SimPOError(
            f"{name!r} holds a {other[0]}, a language model without a head for scores: its scores would be random. Set "
            "reward_model to a model for sequence classification with one label, such as trl's RewardTrainer makes."
        )
    if config.num_labels != 1:
        labels = ", ".join(str(label) for label in list((config.id2label or {}).values())[:5])
        raise SimPOError(
            f"{name!r} is a classifier with {config.num_labels} labels ({labels}); a reward model has one. Set "
            "reward_model to a model with num_labels 1."
        )
