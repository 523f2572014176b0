"""The balance term of mixture-of-experts models: transformers' own number, the same in every layout and split."""

import pytest
import torch
from datasets import Dataset
from transformers import DeepseekV3Config, LlamaConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from models import ARCHITECTURES, SMALL, random_pairs, tiny_model
from reference import gradients, score_pairs
from runs import GradientRecorder, epoch_rows, make_trainer, train_log
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.errors import SimPOError
from simpo_trainer.model.experts import BalanceTerm, balance_loss, token_weights
from simpo_trainer.model.scoring import add_scoring_forward, check_scoring, score_batch

LAYOUTS = ["padded", "shared_prefix", "packed", "padding_free"]
PAIRS = random_pairs(5)
# Large, so that a step shows it.
COEFFICIENT = 0.5

every_model = pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])


def balanced_model(name):
    config = ARCHITECTURES[name]()
    config.output_router_logits = True
    config.router_aux_loss_coef = COEFFICIENT
    return tiny_model(config)


def own_balance(model, pairs):
    """The balance loss of the model's own forward, for padded rows."""
    batch = PairCollator()(pairs)
    return model(batch["input_ids"], attention_mask=batch["attention_mask"]).aux_loss


# ---- The term ----


@pytest.mark.parametrize("experts_per_token", [1, 2, 4])
def test_the_loss_is_that_of_transformers(experts_per_token):
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(4, 9, 6, generator=generator) for _ in range(3)]
    mask = (torch.rand(4, 9, generator=generator) > 0.3).long()
    flat = tuple(layer.reshape(-1, 6) for layer in logits)
    expected = load_balancing_loss_func(flat, 6, experts_per_token, mask)
    torch.testing.assert_close(balance_loss(logits, mask, experts_per_token), expected, rtol=1e-6, atol=1e-6)


def test_a_token_that_counts_twice_is_two_tokens():
    logits = [torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))]
    twice = [torch.cat([logits[0], logits[0][:, 1:3]], 1)]
    found = balance_loss(logits, torch.tensor([[1, 2, 2, 1, 1]]), 2)
    torch.testing.assert_close(found, balance_loss(twice, torch.ones(1, 7), 2))


def test_no_token_that_counts_is_no_loss():
    logits = torch.randn(1, 5, 4, requires_grad=True)
    loss = balance_loss([logits], torch.zeros(1, 5), 2)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


# ---- What counts ----

TWO = [
    {"prompt_ids": [1, 5, 6], "chosen_ids": [7, 8, 2], "rejected_ids": [2]},
    {"prompt_ids": [1], "chosen_ids": [9, 2], "rejected_ids": [3, 2]},
]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("padded", [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
        ("shared_prefix", [[2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        ("packed", [[2, 2, 1, 1, 1, 1, 1, 1, 1, 1]]),
        ("padding_free", [[1] * 12]),
    ],
)
def test_every_input_of_an_answer_counts_once(layout, expected):
    assert token_weights(PairCollator(layout=layout)(TWO)).tolist() == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("padded", [[0] * 5, [1, 1, 0, 0, 0], [0] * 5, [1, 1, 0, 0, 0]]),
        ("shared_prefix", [[0] * 6, [1, 1, 1, 1, 0, 0]]),
        ("packed", [[0] * 6 + [1] * 4]),
        ("padding_free", [[0] * 5 + [1] * 2 + [0] * 3 + [1] * 2]),
    ],
)
def test_filler_does_not_count(layout, expected):
    assert token_weights(PairCollator(layout=layout)([{**TWO[0], "weight": 0.0}, TWO[1]])).tolist() == expected


def test_an_answer_of_several_pairs_counts_once():
    batch = PairCollator(layout="shared_prefix")(TWO[:1])
    batch["chosen"], batch["rejected"] = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    batch["pair_weight"] = torch.tensor([1.0, 0.0, 1.0])
    assert token_weights(batch).tolist() == [[2, 2, 1, 1, 1, 1]]


# ---- Layouts ----


@every_model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_layouts_give_the_models_own_balance(name, checkpointing):
    """Values and gradients, with layers run anew in the backward pass and without."""
    model = balanced_model(name)
    expected = own_balance(model, PAIRS)
    reference = gradients(model, expected)
    assert sum(gradient.norm() for gradient in reference.values()) > 0.1
    add_scoring_forward(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    term = BalanceTerm.from_config(model.config)
    for layout in LAYOUTS:
        batch = PairCollator(layout=layout)([*PAIRS, {**TWO[0], "weight": 0.0}])
        _, router_logits = score_batch(model, batch)
        loss = term.loss(router_logits, batch)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6, msg=lambda text, at=layout: f"{at}: {text}")
        for weight, gradient in gradients(model, loss).items():
            difference = (gradient - reference[weight]).norm()
            assert difference <= 1e-4 * reference[weight].norm() + 1e-6, (layout, weight)


def test_no_router_is_read_unasked():
    model = tiny_model(ARCHITECTURES["mixtral"]())
    add_scoring_forward(model)
    assert score_batch(model, PairCollator()(PAIRS))[1] is None
    assert BalanceTerm.from_config(model.config) is None


# ---- Training ----


@every_model
@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_a_step_adds_the_mean_of_its_micro_batches(tmp_path, name, split):
    """The last micro-batch has one pair of the five; the two before it have two each."""
    recorder = GradientRecorder()
    model = balanced_model(name)
    trainer = make_trainer(tmp_path, PAIRS, model=model, max_steps=1, arguments={"callbacks": [recorder]}, **split)
    trainer.train()
    fresh = balanced_model(name)
    rows = epoch_rows(PAIRS, global_batch=6 if split else 8)
    size = split.get("per_device_train_batch_size", 8)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    balance = sum(own_balance(fresh, part) * len(part) for part in parts) / len(rows)
    expected = gradients(fresh, score_pairs(fresh, rows).loss().float() + COEFFICIENT * balance)
    for weight, gradient in expected.items():
        found = recorder.steps[0].get(weight, torch.zeros_like(gradient))
        assert (found - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, weight
    [(loss, preference_loss, aux_loss)] = train_log(trainer, "loss", "preference_loss", "aux_loss")
    assert aux_loss == pytest.approx(balance.item(), rel=1e-5)
    assert loss == pytest.approx(preference_loss + COEFFICIENT * aux_loss, rel=1e-4)


def test_filler_alone_adds_nothing(tmp_path):
    trainer = make_trainer(tmp_path, PAIRS, model=balanced_model("mixtral"))
    trainer._step_totals = trainer._step_totals._replace(pairs=5.0)
    batch = trainer.data_collator([{**PAIRS[0], "weight": 0.0}])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=5.0)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(trainer.model, loss).values())


def test_evaluation_has_the_term_as_training_has(tmp_path):
    model = balanced_model("mixtral")
    balance = own_balance(model, PAIRS).item()
    trainer = make_trainer(tmp_path, None, model=model, eval_dataset=Dataset.from_list(PAIRS), sft_weight=0.2)
    found = trainer.evaluate()
    assert found["eval_aux_loss"] == pytest.approx(balance, rel=1e-5)
    parts = found["eval_preference_loss"] + 0.2 * found["eval_sft_loss"] + COEFFICIENT * balance
    assert found["eval_loss"] == pytest.approx(parts, rel=1e-5)


def test_the_term_can_be_asked_for_by_settings(tmp_path):
    tiny_model(ARCHITECTURES["qwen3-moe"]()).save_pretrained(tmp_path / "model")
    asked = {"output_router_logits": True, "router_aux_loss_coef": 0.25, "experts_implementation": "eager"}
    trainer = make_trainer(tmp_path / "run", PAIRS, model=str(tmp_path / "model"), model_init_kwargs=asked)
    assert trainer._balance == BalanceTerm(0.25, 2)
    trainer.train()
    assert train_log(trainer, "aux_loss")[0][0] > 0


# ---- Refusals ----


def asking(config, **fields):
    for name, value in ({"output_router_logits": True} | fields).items():
        setattr(config, name, value)
    return config


def test_a_configuration_that_says_too_little():
    with pytest.raises(
        SimPOError, match="no router_aux_loss_coef and no num_experts_per_tok.*output_router_logits: false"
    ):
        BalanceTerm.from_config(asking(LlamaConfig(**SMALL)))


def test_a_model_without_routers():
    model = tiny_model(asking(LlamaConfig(**SMALL), router_aux_loss_coef=0.1, num_experts_per_tok=2))
    add_scoring_forward(model)
    with pytest.raises(SimPOError, match="the model returns no router logits. Set output_router_logits: false"):
        check_scoring(model)


def test_a_model_whose_own_loss_has_no_such_term():
    """DeepSeek's routers are balanced otherwise; older versions of transformers do not return what they say."""
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    }
    sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
    config = DeepseekV3Config(**SMALL | {"num_key_value_heads": 4}, **experts, **sizes, moe_intermediate_size=16)
    model = tiny_model(asking(config, router_aux_loss_coef=0.1))
    add_scoring_forward(model)
    with pytest.raises(SimPOError, match="DeepseekV3ForCausalLM has none in its own loss|returns no router logits"):
        check_scoring(model)


def test_a_model_with_another_term():
    model = balanced_model("mixtral")
    model.num_experts_per_tok = 1  # its own loss counts one expert of a token, its configuration says two
    add_scoring_forward(model)
    with pytest.raises(SimPOError, match="MixtralForCausalLM has another balance term"):
        check_scoring(model)


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_terms_pass(name, dtype):
    model = balanced_model(name).to(dtype)
    add_scoring_forward(model)
    check_scoring(model)


def test_checkpointing_without_gradients_of_routers(tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(SimPOError, match="use_reentrant: true.* no gradient. Set .*use_reentrant: false"):
        make_trainer(tmp_path, PAIRS, model=balanced_model("mixtral"), **options)
