"""Check the optional packages that settings need when training starts: a recipe can be read without them."""

from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..environment import has_package
from ..errors import SimPOError, did_you_mean
from ..recipe.model_keys import ModelKeys
from ..train.config import SimPOConfig


def check_packages(training: SimPOConfig, model: ModelKeys) -> None:
    """Check that every optional package that the settings need is installed.

    Raises:
        SimPOError: packages are missing; the message gives the install command of each, or the setting without it.
    """
    problems = [*_reporting_problems(training), *_attention_problems(training), *_quantization_problems(model)]
    if problems:
        raise SimPOError("\n".join(problems))


def _reporting_problems(training: SimPOConfig) -> list[str]:
    installed = get_available_reporting_integrations()
    missing = [name for name in training.report_to or [] if name not in installed]
    problems = []
    for name in missing:
        if name in INTEGRATION_TO_CALLBACK:
            problems.append(
                f"report_to names {name}, not installed here; installed: {', '.join(installed) or 'none'}. "
                f"Run `pip install {_REPORTER_PACKAGES.get(name, name)}`, or override it: --report_to none"
            )
        else:
            # No install command: a stranger may have published a package of that name.
            reporters = list(INTEGRATION_TO_CALLBACK)
            meant = did_you_mean(name, reporters, 1) or f" It must be one of {', '.join(reporters)}."
            problems.append(f"report_to names {name}, which is not a reporter.{meant}")
    return problems


_REPORTER_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}


# For each attention its package, and the command that installs it.
_ATTENTION = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "pip install kernels"),
}


def _attention_problems(training: SimPOConfig) -> list[str]:
    given = training.model_init_kwargs or {}
    assert isinstance(given, dict)
    attention = given.get("attn_implementation")
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if attention is not None and attention not in known and "/" not in attention:  # a kernel of the Hub has a slash
        meant = did_you_mean(attention, known, 1) or f" It must be one of {', '.join(known)}."
        return [f"attn_implementation is {attention}, which transformers does not have.{meant}"]
    # Without this package, `kernels` fetches the same kernels from the Hub.
    if attention not in _ATTENTION or has_package(_ATTENTION[attention][0]) or has_package("kernels"):
        return []
    return [
        f"attn_implementation is {attention}, but {_ATTENTION[attention][0]} is not installed. Run "
        f"`{_ATTENTION[attention][1]}`, or override it: --attn_implementation sdpa"
    ]


def _quantization_problems(model: ModelKeys) -> list[str]:
    if not (model.load_in_4bit or model.load_in_8bit) or has_package("bitsandbytes"):
        return []
    key = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    return [
        f"{key} needs bitsandbytes, which is not installed. Run `pip install bitsandbytes`, or override it: --no-{key}"
    ]
