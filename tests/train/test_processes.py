"""Process groups: what a sharding engine must not do to scores."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin

from simpo_trainer.train.processes import settle_fsdp


def accelerator_with(**state):
    gradient_state = SimpleNamespace(plugin_kwargs={"num_steps": 8})
    return SimpleNamespace(state=SimpleNamespace(**state), gradient_state=gradient_state)


def test_fsdp2_returns_scores_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16  # what would round the scores
    settle_fsdp(accelerator_with(fsdp_plugin=plugin))
    policy = plugin.mixed_precision_policy
    assert (policy.output_dtype, policy.reduce_dtype, policy.param_dtype) == (None, torch.float32, torch.bfloat16)


def test_fsdp2_reduces_the_gradients_of_each_micro_batch():
    """Until they are reduced, each process holds those of the whole model."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = accelerator_with(fsdp_plugin=plugin)
    settle_fsdp(accelerator)
    assert accelerator.gradient_state.plugin_kwargs == {"num_steps": 8, "sync_each_batch": True}
    assert plugin.mixed_precision_policy is None


@pytest.mark.parametrize("state", [{}, {"fsdp_plugin": None}])
def test_other_engines_are_left_alone(state):
    accelerator = accelerator_with(**state)
    settle_fsdp(accelerator)
    assert accelerator.gradient_state.plugin_kwargs == {"num_steps": 8}
