"""`simpo train` under FSDP2 with checkpoints in shards, on CPU processes; started by `test_run_trainer.py`.

accelerate takes its FSDP plugin only where there is an accelerator: here it is put in its place.
"""

import os
import sys

from accelerate import PartialState, state
from accelerate.utils import DistributedType

from simpo_trainer.cli import main

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def with_fsdp(plain):
    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and kwargs.get("fsdp_plugin"):
            self.fsdp_plugin = kwargs["fsdp_plugin"]
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    return init


if __name__ == "__main__":
    os.environ |= SETTINGS
    state.AcceleratorState.__init__ = with_fsdp(state.AcceleratorState.__init__)
    main(["train", *sys.argv[1:]])
