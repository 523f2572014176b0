"""Without a network, fail at once or take what is cached, instead of minutes of retries."""

from collections.abc import Iterable
from pathlib import Path

import datasets
import huggingface_hub

from ..errors import first_line
from ..log import get_logger

logger = get_logger(__name__)

# Seconds to wait for the Hub's answer.
_PATIENCE = 10.0


def settle_network(names: Iterable[str | None]) -> None:
    """Switch the libraries to what is cached if something is not on this machine and the Hub cannot be reached.

    Args:
        names: folders, files and names of the Hub that a run will load.
    """
    if huggingface_hub.is_offline_mode() or all(name is None or Path(name).expanduser().exists() for name in names):
        return
    if problem := _unreachable():
        logger.warning(
            f"The Hugging Face Hub ({huggingface_hub.constants.ENDPOINT}) cannot be reached ({problem}): only what is "
            "in the cache of this machine can be used, as with HF_HUB_OFFLINE=1."
        )
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True


def _unreachable() -> str | None:
    """Returns why the Hub does not answer; None where it does, whatever the answer is."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # the client's errors are not those of one library
        return first_line(error)
    return None
