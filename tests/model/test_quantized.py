"""4-bit weights on a CPU."""

import pytest
import torch

from models import tiny_model
from simpo_trainer.model.load import load_model
from simpo_trainer.model.settings import ModelSettings


def test_an_evaluation_changes_no_four_bit_weight(tmp_path):
    """bitsandbytes stores them anew where the CPU computes in bfloat16; elsewhere there is nothing to see."""
    pytest.importorskip("bitsandbytes", reason="make install-scale")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    settings = ModelSettings(model_init_kwargs={"quantization_config": {"load_in_4bit": True}})
    model = load_model(str(tmp_path), settings, adapter_follows=True, bf16=False)
    [layer, *_] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert hasattr(layer, "support_avx512bf16_for_cpu")  # the name that the package relies on
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.arange(3, 19).view(2, 8)
    trains = model.train()(ids).logits
    with torch.no_grad():
        model.eval()(ids)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model.train()(ids).logits, trains)
