"""Process groups: what a sharding engine must not do to scores."""

from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin

from simpo_trainer.train.processes import keep_scores_float32


def accelerator_with(**state):
    return SimpleNamespace(state=SimpleNamespace(**state))


def test_fsdp2_returns_scores_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16  # what would round the scores
    keep_scores_float32(accelerator_with(fsdp_plugin=plugin))
    policy = plugin.mixed_precision_policy
    assert (policy.output_dtype, policy.reduce_dtype, policy.param_dtype) == (None, torch.float32, torch.bfloat16)


def test_other_engines_are_left_alone():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    keep_scores_float32(accelerator_with(fsdp_plugin=plugin))
    assert plugin.mixed_precision_policy is None
    keep_scores_float32(accelerator_with(fsdp_plugin=None))
    keep_scores_float32(accelerator_with())
