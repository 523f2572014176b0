"""A recipe's keys for an adapter mean what they say, whatever trl and peft make of texts and lists of one."""

import pytest
from trl import get_peft_config

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe

BASE = "model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: out\nuse_peft: true\n"


@pytest.fixture
def load(tmp_path):
    """Load a recipe with an adapter from these lines and words of a command line."""

    def load(lines="", overrides=()):
        (tmp_path / "recipe.yaml").write_text(BASE + lines)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load


def lora_of(recipe):
    return get_peft_config(recipe.model)


@pytest.mark.parametrize(
    ("written", "targets"),
    [
        ("[q_proj]", {"q_proj"}),
        ("q_proj", {"q_proj"}),
        ("[q_proj, v_proj]", {"q_proj", "v_proj"}),
        ("[self_attn.q_proj]", {"self_attn.q_proj"}),
        ("[0.q-proj]", {"0.q-proj"}),
        ("all-linear", "all-linear"),
        ("[all-linear]", "all-linear"),
        ("All-Linear", "all-linear"),
        (r"'.*\.(q|v)_proj'", r".*\.(q|v)_proj"),
        (r"['.*\.(q|v)_proj']", r".*\.(q|v)_proj"),
        ("null", None),
    ],
)
def test_targets_are_those_that_were_written(load, written, targets):
    assert lora_of(load(f"lora_target_modules: {written}")).target_modules == targets
    assert lora_of(load(overrides=["--lora_target_modules", written.strip("'")])).target_modules == targets


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_targets_of_the_baselines_too(load, method):
    assert lora_of(load(f"method: {method}\nlora_target_modules: [q_proj]")).target_modules == {"q_proj"}


def test_no_target_beside_parameters(load):
    lora = lora_of(load("lora_target_modules: []\nlora_target_parameters: [experts.gate_up_proj]"))
    assert (lora.target_modules, lora.target_parameters) == (set(), ["experts.gate_up_proj"])


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("lora_target_parameters: mlp.weight", "target_parameters", ["mlp.weight"]),
        ("lora_modules_to_save: [lm_head]", "modules_to_save", ["lm_head"]),
        ("lora_modules_to_save: lm_head", "modules_to_save", ["lm_head"]),
        ("use_rslora: true", "use_rslora", True),
        ("use_dora: true", "use_dora", True),
        ("lora_alpha: 7", "lora_alpha", 7),
        ("lora_r: 3", "r", 3),
    ],
)
def test_other_keys_reach_peft_as_they_are(load, line, field, value):
    assert getattr(lora_of(load(line)), field) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "lora_target_modules: 'q_proj, v_proj'",
            r"the text 'q_proj, v_proj', .*lora_target_modules: \[q_proj, v_proj\]",
        ),
        ("lora_target_modules: q_proj v_proj", r"Set lora_target_modules: \[q_proj, v_proj\]"),
        ("lora_target_modules: [q_proj, all-linear]", "all-linear among other names; it must stand alone"),
        ("lora_target_modules: [q_proj, '.*v_proj']", r"'\.\*v_proj' in a list, where peft takes it for a name"),
        ("lora_target_modules: '(q_proj'", "no name and no valid regular expression: .*List the names"),
        ("lora_task_type: SEQ_CLS", "lora_task_type is SEQ_CLS; it must be CAUSAL_LM"),
    ],
)
def test_what_peft_would_read_otherwise_is_refused(load, line, message):
    with pytest.raises(SimPOError, match=message):
        load(line)


@pytest.mark.parametrize(
    ("lines", "dropout"),
    [
        ("", 0.0),
        ("disable_dropout: false", 0.05),
        ("disable_dropout: false\nlora_dropout: 0.2", 0.2),
        ("lora_dropout: 0.2", 0.2),  # the trainer tells that it is disabled
    ],
)
def test_the_default_dropout_is_that_of_the_run(load, lines, dropout):
    recipe = load(lines)
    assert lora_of(recipe).lora_dropout == dropout
    assert recipe.resolved()["lora_dropout"] == dropout
