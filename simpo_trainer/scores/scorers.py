"""The scorer that the settings ask for."""

from ..errors import SimPOError
from ..recipe.answer_keys import AnnotateSettings
from .scorer import Scorer

_KINDS = {
    "score": "a Python function",
    "reward_model": "a reward model that runs here",
    "ranker": "a model that compares answers",
    "server": "a server with a reward model",
}


def check_one_scorer(settings: AnnotateSettings) -> None:
    """Check that the settings name one scorer.

    Raises:
        SimPOError: they name none or several.
    """
    given = [name for name in _KINDS if getattr(settings, name)]
    if len(given) != 1:
        listed = ", ".join(f"{name} ({what})" for name, what in _KINDS.items())
        found = f"{' and '.join(given)} are given" if given else "No scorer is given"
        raise SimPOError(f"{found}; give exactly one of {listed}.")


def load_scorer(settings: AnnotateSettings) -> Scorer:
    """Returns the scorer, ready to work but for the weights of a model.

    Raises:
        SimPOError: it cannot be found or used.
    """
    if settings.score:
        from .function_scorer import FunctionScorer

        return FunctionScorer(settings.score)
    if settings.reward_model:
        from .reward_scorer import RewardScorer

        return RewardScorer(settings)
    if settings.ranker:
        from .ranker_scorer import RankerScorer

        return RankerScorer(settings)
    from .server_scorer import ServerScorer

    return ServerScorer(settings)
