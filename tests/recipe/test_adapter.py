"""A recipe's keys for an adapter mean what they say, whatever trl and peft make of texts and lists of one."""

import pytest
from peft import get_peft_model
from trl import get_peft_config

from models import tiny_model
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
        ("null", "all-linear"),
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


@pytest.mark.parametrize(("method", "rate"), [("simpo", 5e-6), ("dpo", 5e-6), ("sft", 2e-4)])
def test_an_adapter_has_ten_times_the_rate_unless_one_is_given(load, method, rate):
    recipe = load(f"method: {method}\n")
    used = recipe.baseline or recipe.training.settled()
    assert used.learning_rate == recipe.resolved()["learning_rate"] == pytest.approx(rate)
    assert f"learning_rate is {rate:g}, 10 times the {rate / 10:g}" in recipe.notices[-1]
    for lines, overrides in (("learning_rate: 1e-6\n", ()), ("", ("--learning_rate", "1e-6"))):
        kept = load(f"method: {method}\n{lines}", overrides)
        assert (kept.baseline or kept.training).learning_rate == kept.resolved()["learning_rate"] == 1e-6
        assert not any("10 times" in notice for notice in kept.notices)
    opened = load(f"method: {method}\nlearning_rate: 1e-6\n", ("--learning_rate", "null"))
    assert opened.resolved()["learning_rate"] == pytest.approx(rate)
    full = load(f"method: {method}\n", ("--use_peft", "false"))
    assert full.resolved()["learning_rate"] == pytest.approx(rate / 10)


def test_a_folder_with_an_adapter_is_one_too(load, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    words = ["--use_peft", "false", "--model_name_or_path"]
    assert load(overrides=[*words, str(tmp_path)]).resolved()["learning_rate"] == 5e-6
    assert load(overrides=[*words, str(tmp_path / "none")]).resolved()["learning_rate"] == 5e-7


def test_all_linear_layers_adapt_by_default(load):
    recipe = load()
    assert recipe.resolved()["lora_target_modules"] == "all-linear"
    model = get_peft_model(tiny_model(), lora_of(recipe))
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if name.endswith("lora_A.default.weight")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
