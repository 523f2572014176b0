"""Engines that split a model: what they must not do to scores, and what is refused under them."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.parallelism_config import ParallelismConfig
from peft import LoraConfig, get_peft_model

from models import tiny_model
from simpo_trainer.errors import SimPOError
from simpo_trainer.train.sharding import parallelism_problem, settle_sharding


def accelerator_with(**state):
    gradient_state = SimpleNamespace(plugin_kwargs={"num_steps": 8})
    return SimpleNamespace(state=SimpleNamespace(**state), gradient_state=gradient_state)


def test_fsdp2_returns_scores_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16  # what would round the scores
    settle_sharding(accelerator_with(fsdp_plugin=plugin), None)
    policy = plugin.mixed_precision_policy
    assert (policy.output_dtype, policy.reduce_dtype, policy.param_dtype) == (None, torch.float32, torch.bfloat16)


def test_fsdp2_reduces_the_gradients_of_each_micro_batch():
    """Until they are reduced, each process holds those of the whole model."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = accelerator_with(fsdp_plugin=plugin)
    settle_sharding(accelerator, None)
    assert accelerator.gradient_state.plugin_kwargs == {"num_steps": 8, "sync_each_batch": True}
    assert plugin.mixed_precision_policy is None


@pytest.mark.parametrize("state", [{}, {"fsdp_plugin": None}])
def test_other_engines_are_left_alone(state):
    accelerator = accelerator_with(**state)
    settle_sharding(accelerator, None)
    assert accelerator.gradient_state.plugin_kwargs == {"num_steps": 8}


@pytest.mark.parametrize(("size", "kind"), [("tp_size", "tensor"), ("cp_size", "context"), ("sp_size", "sequence")])
def test_splits_of_a_row_are_refused_by_name(size, kind):
    launched = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", f"PARALLELISM_CONFIG_{size.upper()}": "2"}
    for problem in (parallelism_problem(ParallelismConfig(**{size: 2}), {}), parallelism_problem(None, launched)):
        assert problem.startswith(f"{kind} parallelism ({size} 2) is set") and "Use fsdp2 or zero3" in problem


def test_a_split_of_the_pairs_is_no_split_of_a_row():
    launched = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
    assert parallelism_problem(ParallelismConfig(dp_shard_size=2), launched) is None
    assert parallelism_problem(None, launched) is None
    assert parallelism_problem(None, {}) is None


def deepspeed(stage=3, **settings):
    return accelerator_with(deepspeed_plugin=SimpleNamespace(zero_stage=stage, deepspeed_config=settings))


@pytest.mark.parametrize(
    ("accelerator", "model", "said"),
    [
        (deepspeed(tensor_parallel={"autotp_size": 4}), None, "DeepSpeed's autotp_size is 4"),
        (deepspeed(sequence_parallel_size=2), None, "DeepSpeed's sequence_parallel_size is 2"),
        (accelerator_with(), SimpleNamespace(tp_size=2), "loaded with a tp_plan, over 2 processes"),
    ],
)
def test_models_and_engines_that_split_rows_are_refused(accelerator, model, said):
    with pytest.raises(SimPOError, match=said):
        settle_sharding(accelerator, model)


def test_dora_is_refused_under_zero3_alone():
    model = get_peft_model(tiny_model(), LoraConfig(use_dora=True, target_modules=["q_proj"]))
    settle_sharding(deepspeed(stage=2), model)
    with pytest.raises(SimPOError, match="use_dora is true under DeepSpeed ZeRO-3.* fsdp2 or zero2"):
        settle_sharding(deepspeed(), model)
    settle_sharding(deepspeed(), get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])))
