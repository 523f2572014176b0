"""Python runs this file at its start: it lets accelerate use FSDP and DeepSpeed on CPU processes, for tests."""

import importlib.abc
import importlib.util
import os
import sys


def _with_fsdp(state, utils):
    """accelerate takes its FSDP plugin only where there is an accelerator; here it is put in its place."""
    plain = state.AcceleratorState.__init__

    def init(self, *args, **given):
        plain(self, *args, **given)
        plugin = given.get("fsdp_plugin")
        if self.distributed_type == utils.DistributedType.MULTI_CPU and plugin is not None:
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            if hasattr(plugin.cpu_offload, "pin_memory"):  # for an accelerator
                plugin.cpu_offload = type(plugin.cpu_offload)(pin_memory=False)
            self.fsdp_plugin, self.distributed_type = plugin, utils.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = utils.DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def _with_deepspeed(state, utils):
    """accelerate takes DeepSpeed only where it is not told to use the CPU, and asks for a backend of accelerators."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.comm.torch

    # It compiles an operation on shared memory, whose stale lock can hang it for ever.
    deepspeed.comm.torch.build_shm_op = lambda: None
    _split_small_weights()
    state.PartialState._prepare_backend = lambda self, *args, **given: ("gloo", utils.DistributedType.MULTI_CPU)
    for owner, position in ((state.PartialState, 0), (state.AcceleratorState, 1)):
        owner.__init__ = _not_told_of_cpu(owner.__init__, position)


def _split_small_weights():
    """ZeRO-3 leaves weights of less than 100,000 numbers whole, which all those of a test are."""
    from deepspeed.runtime import config

    plain = config.get_zero_config

    def read(param_dict):
        param_dict.get("zero_optimization", {}).setdefault("stage3_param_persistence_threshold", 0)
        return plain(param_dict)

    config.get_zero_config = read


def _not_told_of_cpu(plain, position):
    def init(self, *args, **given):
        os.environ["ACCELERATE_USE_CPU"] = "false"
        if len(args) > position:
            args = (*args[:position], False, *args[position + 1 :])
        elif "cpu" in given:
            given["cpu"] = False
        plain(self, *args, **given)

    return init


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `accelerate.state`, and patches it as soon as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_patch(module):
            run(module)
            from accelerate.utils import dataclasses as utils

            if os.environ.get("ACCELERATE_USE_FSDP") == "true":
                _with_fsdp(module, utils)
            elif os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
                _with_deepspeed(module, utils)

        spec.loader.exec_module = run_and_patch
        return spec


if "LOCAL_RANK" in os.environ:
    sys.meta_path.insert(0, _Finder())
