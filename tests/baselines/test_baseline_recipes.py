"""What a recipe of SimPO means under `method: dpo` and `method: sft`, and which mistakes are told."""

import re

import pytest

from simpo_trainer import SimPOTrainer
from simpo_trainer.baselines.settings import own_keys
from simpo_trainer.errors import SimPOError
from simpo_trainer.run.one_run import run


def test_the_budget_carries_over(recipe):
    """Settings by their names, defaults that differ between SimPO's and trl's classes, and what follows from others."""
    ours, theirs = recipe(gradient_accumulation_steps=None), recipe("--method=dpo", gradient_accumulation_steps=None)
    baseline = theirs.baseline
    for name in (
        *(
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "num_train_epochs",
            "max_steps",
            "logging_steps",
            "seed",
        ),
        *(
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "gradient_checkpointing",
            "weight_decay",
            "bf16",
        ),
        *("max_grad_norm", "optim", "save_strategy", "report_to", "use_cpu", "adam_beta2", "mixed_precision"),
        *("logging_nan_inf_filter", "remove_unused_columns", "ddp_find_unused_parameters", "output_dir"),
    ):
        assert getattr(baseline, name) == getattr(ours.training.settled(), name), name
    assert (baseline.gradient_accumulation_steps, baseline.gradient_checkpointing) == (2, False)
    assert baseline.beta == theirs.resolved()["beta"] == 0.01
    assert "gamma_beta_ratio" not in theirs.resolved() and theirs.resolved()["method"] == "dpo"


def test_a_silent_recipe_has_the_usual_rate_of_the_method(recipe):
    assert recipe(method="dpo", learning_rate=None).baseline.learning_rate == 5e-7
    assert recipe(method="sft", learning_rate=None).baseline.learning_rate == 2e-5
    kept = recipe("--method=sft", learning_rate=1e-6)
    assert kept.baseline.learning_rate == 1e-6
    assert kept.notices == ["learning_rate: 1e-06 was written for method simpo and is kept; SFT usually takes 2e-5."]
    assert recipe("--method=sft", learning_rate=1e-5).notices == []


def test_a_beta_beside_the_method_counts(recipe):
    assert recipe(method="dpo", beta=0.1).baseline.beta == 0.1
    both = recipe("--method=dpo", "--beta=0.05", beta=2.0, gamma_beta_ratio=0.5)
    assert both.baseline.beta == 0.05
    [notice] = both.notices
    assert notice.startswith("gamma_beta_ratio: 0.5: written for method simpo and ignored under method dpo.")
    assert recipe("--beta=0.2", method="dpo", beta=0.1).baseline.beta == 0.2
    back = recipe("--method=simpo", method="dpo", beta=0.1, precompute_ref_log_probs=True)
    assert back.training.beta != 0.1 and back.baseline is None
    assert "precompute_ref_log_probs: true is left out: SimPO has no reference model" in back.notices[0]
    assert back.notices[1].startswith("beta: 0.1: written for method dpo and ignored under method simpo.")


def test_what_has_no_effect_is_named_in_one_warning(recipe):
    loaded = recipe(method="dpo", gamma_beta_ratio=0.5, sft_weight=0.1, average_log_prob=True, batch_layout="auto")
    [notice] = loaded.notices
    assert re.match(r"(?:\w+, ){3}\w+: no effect under method dpo\.", notice)
    for name in ("gamma_beta_ratio", "sft_weight", "average_log_prob", "batch_layout"):
        assert name in notice


def test_keys_of_dpo(recipe):
    loaded = recipe(
        method="dpo",
        precompute_ref_log_probs=True,
        ref_model_init_kwargs={"attn_implementation": "eager"},
        loss_type=["sigmoid", "ipo"],
        loss_weights=[0.7, 0.3],
    )
    assert (loaded.baseline.precompute_ref_log_probs, loaded.baseline.loss_type) == (True, ["sigmoid", "ipo"])
    assert loaded.baseline.loss_weights == [0.7, 0.3]
    assert loaded.notices == []
    assert own_keys("dpo") >= {"sync_ref_model", "ld_alpha", "f_divergence_type", "use_weighting"}
    assert not recipe("--no-precompute_ref_log_probs", method="dpo").baseline.precompute_ref_log_probs
    # Under SimPO they are what they were: left out, or unknown.
    hidden = recipe(method="dpo", ref_model_init_kwargs={"token": "hf_secret", "revision": "v1"})
    assert "hf_secret" not in str(hidden.resolved())
    assert "SimPO has no reference model" in recipe(precompute_ref_log_probs=True).notices[0]
    with pytest.raises(SimPOError, match="unknown key ld_alpha; it belongs to method: dpo"):
        recipe(ld_alpha=0.5)


def test_older_names_of_losses(recipe):
    loaded = recipe(method="dpo", loss_type="aot_pair")
    assert loaded.baseline.loss_type == ["aot"]
    assert loaded.notices == ["loss_type aot_pair is called aot by trl now, and is read as aot."]
    bare = recipe(method="dpo", loss_type="aot")
    assert bare.baseline.loss_type == ["aot"] and "aot_unpaired" in bare.notices[0]
    assert recipe(method="dpo", loss_type="aot_unpaired").notices == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dop"}, 'method is "dop"; it must be one of simpo, dpo, sft'),
        ({"method": "dpo", "loss_type": "sigmiod"}, "loss_type sigmiod is not a loss of DPO. Did you mean sigmoid"),
        ({"method": "dpo", "loss_type": "simpo"}, "loss_type simpo is not a loss of DPO. Set method: simpo."),
        (
            {"method": "dpo", "loss_type": ["sigmoid", "xyz"]},
            "xyz is not a loss of DPO. It must be one of sigmoid, hinge",
        ),
        ({"method": "dpo", "loss_type": ["ipo", "sft"], "loss_weights": [1.0]}, "loss_weights has 1 numbers for 2"),
        ({"method": "dpo", "loss_type": "exo_pair"}, "exo_pair needs a label_smoothing above 0"),
        ({"method": "dpo", "loss_type": "robust", "label_smoothing": 0.5}, r"it must lie in \[0, 0.5\)"),
        ({"method": "dpo", "beta": 0}, "beta is 0.0; it must be above 0"),
        (
            {"method": "dpo", "f_divergence_type": "foward_kl"},
            "one of reverse_kl, forward_kl, .* Did you mean forward_kl",
        ),
        ({"method": "dpo", "gradient_checkpointing_kwargs": {"reentrant": True}}, "has 'reentrant', which torch's"),
        ({"method": "dpo", "precompute_ref_logprobs": True}, "Did you mean precompute_ref_log_probs"),
        ({"method": "dpo", "streaming": True}, "method dpo needs the whole training set"),
        ({"method": "sft", "loss_type": "sigmoid"}, 'loss_type is "sigmoid"; it must be one of nll, dft'),
        ({"max_seq_length": 64}, "is a key of SFT files. Add method: sft"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(recipe, settings, message):
    with pytest.raises(SimPOError, match=message):
        recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 2.0}, "beta=2.0 is SimPO-sized. DPO sums log-probabilities"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect on sigmoid in trl; it belongs to robust"),
    ],
)
def test_numbers_that_are_likely_mistakes(recipe, settings, message):
    assert message in recipe(method="dpo", **settings).notices[0]


def test_a_trainer_of_simpo_is_not_left_out_in_silence(recipe):
    class Mine(SimPOTrainer):
        pass

    with pytest.raises(SimPOError, match="Mine trains by SimPO, and the recipe's method is dpo"):
        run(recipe(method="dpo"), Mine)


def test_what_trl_refuses_is_a_message(recipe):
    lora = {"use_peft": True, "lora_target_modules": "all-linear"}
    with pytest.raises(SimPOError, match="trl's DPOTrainer refuses these settings: You passed `sync_ref_model=True`"):
        run(recipe(method="dpo", sync_ref_model=True, **lora))
