"""The engine that samples with vLLM in this process; all calls of vLLM are here.

Untested with vLLM itself: its tests put a small stand-in in its place, which has the documented calls.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from ..recipe.answer_keys import GenerateSettings
from .requests import Answer, Answered, Prompt, hash_of

# Prompts whose answers are kept together: enough to fill a card, few enough that a kill loses little.
_GROUP = 64


def vllm_is_there() -> bool:
    """Returns true if vLLM is installed."""
    return find_spec("vllm") is not None


class VllmEngine:
    """Answers prompts by vLLM, which loads the model when the first answers are asked for.

    Args:
        settings: how to sample.
        model: the model's folder or name on the Hub.
        tokenizer: the tokenizer's folder or name on the Hub, by which vLLM makes text of tokens.
        prompt_ids: returns the tokens of a prompt.
        end_ids: tokens that end an answer.
        options: further arguments of `vllm.LLM`, such as the revision of the model.
    """

    promise = (
        "The same command gives the same rows, keys and order, and makes no answer again that is there. Each answer "
        "has a seed of its own, but vLLM computes a batch together, so that texts may differ with what else is in it."
    )

    def __init__(
        self,
        settings: GenerateSettings,
        model: str,
        tokenizer: str,
        prompt_ids: Callable[[Prompt], list[int]],
        end_ids: list[int],
        **options: Any,
    ) -> None:
        self._settings = settings
        self._options = {"model": model, "tokenizer": tokenizer, **options}
        self._prompt_ids = prompt_ids
        self._end_ids = end_ids

    def answers(self, prompts: Sequence[Prompt], is_done: Sequence[bool]) -> Iterator[list[Answered]]:
        """Yields prompts with their answers, in groups of up to 64."""
        waiting = [prompt for prompt, done in zip(prompts, is_done, strict=True) if not done]
        if not waiting:
            return
        import vllm

        model = vllm.LLM(**self._options)
        for start in range(0, len(waiting), _GROUP):
            group = waiting[start : start + _GROUP]
            requests = [(prompt, seed) for prompt in group for seed in self._settings.used_seeds]
            tokens = {prompt.hash: self._prompt_ids(prompt) for prompt in group}
            outputs = model.generate(
                [{"prompt_token_ids": tokens[prompt.hash]} for prompt, _ in requests],
                [vllm.SamplingParams(**self._sampling(prompt, seed)) for prompt, seed in requests],
                use_tqdm=False,
            )
            answers = iter([_answer_of(output) for output in outputs])
            yield [(prompt, [next(answers) for _ in self._settings.used_seeds]) for prompt in group]

    def _sampling(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        settings = self._settings
        return {
            "n": 1,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_new_tokens,
            # Of the prompt too: equal seeds would draw equal numbers for every prompt. 63 bits, for it is signed.
            "seed": int(hash_of(prompt.hash, seed)[:16], 16) >> 1,
            "stop_token_ids": self._end_ids,
        }


def _answer_of(output: Any) -> Answer:
    found = output.outputs[0]
    return Answer(found.text, found.finish_reason or "unknown", len(found.token_ids))
