"""The training step: equal to the slow reference, whatever the split of the batch, and to trl's SimPO."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from batches import LeftPaddingCollator
from models import BOS, EOS, as_text, halved_llama, random_pairs, tiny_architecture, tiny_model, word_tokenizer
from reference import Settings, gradients, in_float64, score_pairs, tokens_of
from runs import (
    PLAIN_STEPS,
    GradientRecorder,
    assert_same_run,
    assert_same_weights,
    epoch_rows,
    make_trainer,
    train_log,
    weights_of,
)
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.train.logged_steps import LoggedSteps

ROWS = random_pairs(22)
WITH_MARGINS = [{**row, "margin": 0.1 * place} for place, row in enumerate(ROWS)]

# Every term of the loss, and every way to count in it.
OBJECTIVES = {
    "sigmoid": {},
    "hinge": {"loss_type": "hinge", "beta": 2.5},
    "smoothing": {"label_smoothing": 0.2, "beta": 3.0},
    "sums": {"average_log_prob": False, "beta": 0.2, "gamma_beta_ratio": 0.7},
    "sft by sequence": {"sft_weight": 0.3},
    "sft by token": {"sft_weight": 0.3, "sft_reduction": "token"},
    "no margin": {"gamma_beta_ratio": 0.0},
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


# ---- One step equals the reference ----


def assert_step_is_the_references(folder, rows, objective, model, **settings) -> None:
    """One optimiser step over `rows`: loss and every gradient, up to the rounding of float32."""
    slow = in_float64(model)
    recorder = GradientRecorder()
    trainer = make_trainer(folder, rows, model=model, arguments={"callbacks": [recorder]}, **objective, **settings)
    trainer.train()
    assert len(recorder.steps) == 1

    expected = score_pairs(slow, rows, Settings(**objective)).loss()
    assert train_log(trainer, "loss") == [(pytest.approx(expected.item(), rel=1e-5),)]
    reference = gradients(slow, expected)
    for name, gradient in recorder.steps[0].items():
        assert (gradient - reference[name]).norm() <= 1e-5 * reference[name].norm() + 1e-7, name


@every_objective
def test_a_step_equals_the_reference(tmp_path, objective):
    """Five pairs of different margins in micro-batches of 2, 2 and 1."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    assert_step_is_the_references(tmp_path, WITH_MARGINS[:5], objective, tiny_model(), **settings)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi", "qwen3-tied"])
def test_a_step_of_another_architecture_equals_the_reference(tmp_path, name):
    """Learned positions, soft-capped logits, a biased head, a head that is also the embedding."""
    assert_step_is_the_references(tmp_path, ROWS[:5], {"sft_weight": 0.1}, tiny_architecture(name))


# ---- The split into micro-batches does not matter ----


@pytest.mark.parametrize("batch_size", [pytest.param(4, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(
    "objective",
    [
        {},
        pytest.param({"sft_weight": 0.3, "label_smoothing": 0.1}, marks=pytest.mark.slow),
        {"loss_type": "hinge", "sft_weight": 0.3, "sft_reduction": "token"},
    ],
    ids=["sigmoid", "sft by sequence", "hinge, sft by token"],
)
def test_8x1_4x2_and_1x8_are_the_same_run(tmp_path, objective, batch_size):
    """Over two epochs of 8 + 8 + 6 pairs: losses, gradient norms, weights; only float32 sums are in another order."""
    whole = make_trainer(tmp_path / "8", WITH_MARGINS, num_train_epochs=2, **objective)
    whole.train()
    assert whole.state.global_step == 6
    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
    split = make_trainer(tmp_path / "split", WITH_MARGINS, num_train_epochs=2, **settings, **objective)
    split.train()
    assert_same_run(split, whole, tolerance=2e-5)


@pytest.mark.slow
def test_the_reported_train_loss_is_the_mean_of_the_steps(tmp_path):
    trainer = make_trainer(tmp_path, ROWS, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    result = trainer.train()
    losses = [loss for (loss,) in train_log(trainer, "loss")]
    assert result.training_loss == pytest.approx(sum(losses) / 3)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (1, 8)])
def test_an_incomplete_last_global_batch_can_be_left_out(tmp_path, batch_size, accumulation):
    """Steps of 8 from 22 pairs: two of them an epoch, however the 8 are split."""
    split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tmp_path, ROWS, learning_rate=0.0, num_train_epochs=2, dataloader_drop_last=True, **split)
    trainer.train()
    assert train_log(trainer, "num_pairs_seen") == [(8,), (16,), (24,), (32,)]
    slow = in_float64(tiny_model())
    taken = epoch_rows(ROWS)
    expected = [score_pairs(slow, taken[part]).loss().item() for part in (slice(8), slice(8, 16))]
    assert [loss for (loss,) in train_log(trainer, "loss")][:2] == pytest.approx(expected, rel=1e-5)


# ---- Other implementations of the same step ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"sft_weight": 0.3, "sft_reduction": "token"}, {"cpo_alpha": 0.3}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    ],
    ids=["simpo", "sft", "smoothing"],
)
def test_a_step_equals_trls_simpo(tmp_path, ours, theirs):
    """trl's CPO trainer in SimPO mode, which takes gamma where we take gamma / beta: loss and weights after a step."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    rows = [row for row in ROWS if min(map(len, row.values())) > 1][:6]
    data = Dataset.from_list([as_text(row) for row in rows])
    settings = {**PLAIN_STEPS, "num_train_epochs": 1, "bf16": False, "use_cpu": True, "max_length": 64}
    trl_args = cpo.CPOConfig(
        str(tmp_path / "trl"),
        **{**settings, "loss_type": "simpo", "beta": 2.5, "simpo_gamma": 2.5 * 0.4, "cpo_alpha": 0.0, **theirs},
    )
    trl_trainer = cpo.CPOTrainer(tiny_model(), trl_args, train_dataset=data, processing_class=word_tokenizer())
    trl_trainer.train()
    args = SimPOConfig(str(tmp_path / "ours"), **settings, max_prompt_length=32, beta=2.5, gamma_beta_ratio=0.4, **ours)
    trainer = SimPOTrainer(tiny_model(), args, train_dataset=data, processing_class=word_tokenizer())
    assert [{name: row[name] for name in rows[0]} for row in trainer.train_dataset] == rows
    trainer.train()
    assert trainer.state.global_step == trl_trainer.state.global_step == 1
    assert train_log(trainer, "loss")[0] == pytest.approx(train_log(trl_trainer, "loss")[0], rel=1e-5)
    assert_same_weights(weights_of(trainer), weights_of(trl_trainer), tolerance=1e-6)
    assert (weights_of(trainer)["lm_head.weight"] - tiny_model().lm_head.weight).abs().max() > 1e-3  # it was a step


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = make_trainer(tmp_path / "plain", ROWS)
    plain.train()
    checkpointed = make_trainer(tmp_path / "checkpointed", ROWS, gradient_checkpointing=True)
    checkpointed.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.model.modules())
    assert_same_run(checkpointed, plain, tolerance=1e-6)


def adapter() -> LoraConfig:
    return LoraConfig(target_modules=["q_proj", "up_proj"], r=4, lora_dropout=0.1, task_type="CAUSAL_LM")


def test_lora_trains_the_adapter_alone_with_and_without_gradient_checkpointing(tmp_path):
    base = tiny_model().state_dict()
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(1)  # the adapter's first weights
        recorder = GradientRecorder()
        arguments = {"peft_config": adapter(), "callbacks": [recorder]}
        settings = {"gradient_checkpointing": checkpointing, "learning_rate": 1.0}
        trainer = make_trainer(tmp_path / str(checkpointing), ROWS, arguments=arguments, **settings)
        trainer.train()
        runs.append(trainer)
        assert recorder.steps[-1] and all("lora_" in name for name in recorder.steps[-1])
        assert all(gradient.norm() > 1e-6 for gradient in recorder.steps[-1].values())
        for name, weight in trainer.model.get_base_model().state_dict().items():
            if "lora_" not in name:
                assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    assert_same_run(runs[1], runs[0], tolerance=1e-6)


@pytest.mark.slow
def test_bf16_autocast_keeps_float32_weights_and_comes_close(tmp_path):
    """bfloat16 rounds log-probabilities of about -6 to within 1/64, their averages to less."""
    exact = make_trainer(tmp_path / "float32", ROWS)
    exact.train()
    rounded = make_trainer(tmp_path / "bf16", ROWS, bf16=True)
    rounded.train()
    assert {weight.dtype for weight in weights_of(rounded).values()} == {torch.float32}
    losses, expected = (torch.tensor(train_log(trainer, "loss")) for trainer in (rounded, exact))
    assert 1e-6 < (losses - expected).abs().max() < 0.02  # it did run in bfloat16
    start = tiny_model().state_dict()
    for name, weight in weights_of(exact).items():
        moved, moved_rounded = weight - start[name], weights_of(rounded)[name] - start[name]
        assert (moved_rounded - moved).norm() < 0.05 * moved.norm(), name


# ---- What can be exchanged ----


@pytest.mark.slow
def test_a_collator_with_another_layout_gives_the_same_run(tmp_path):
    plain = make_trainer(tmp_path / "plain", ROWS)
    plain.train()
    collated = []

    class Noting(LeftPaddingCollator):
        def __call__(self, pairs):
            collated.append(super().__call__(pairs))
            return collated[-1]

    other = make_trainer(tmp_path / "left", ROWS, arguments={"data_collator": Noting(EOS)})
    other.train()
    assert any((batch["attention_mask"][:, 0] == 0).any() for batch in collated)
    assert_same_run(other, plain, tolerance=2e-5)


class SquaredMargin(SimPOTrainer):
    """Another loss: squared distance of the summed log-probabilities' difference per chosen token from the margin."""

    def pair_loss(self, chosen, rejected, *, margin: Tensor) -> Tensor:
        return ((chosen.sum - rejected.sum) / chosen.length - margin) ** 2


def test_a_subclass_may_bring_another_loss(tmp_path):
    """Its arguments are sums, averages and lengths of each answer, and the target with what the data adds."""
    rows = WITH_MARGINS[:6]
    trainer = make_trainer(tmp_path, rows, eval_dataset=Dataset.from_list(rows), trainer_class=SquaredMargin)
    answers = score_pairs(in_float64(tiny_model()), rows)
    values = [
        ((chosen.sum - rejected.sum) / len(chosen.logps) - 0.5 - row["margin"]) ** 2
        for chosen, rejected, row in zip(answers.chosen, answers.rejected, rows, strict=True)
    ]
    expected = (sum(values) / 6).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert train_log(trainer, "loss", "preference_loss")[0] == pytest.approx((expected, expected), rel=1e-5)


@pytest.mark.slow
def test_callbacks_are_called(tmp_path):
    events = []

    class Recorder(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            events.append(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            events.append("rewards/margins" in logs)

    trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": [Recorder()]})
    trainer.train()
    assert events == [1, True, 2, True, 3, True, False]


@pytest.mark.slow
def test_rows_may_be_a_plain_list(tmp_path):
    from_dataset = make_trainer(tmp_path, ROWS)
    args = SimPOConfig(str(tmp_path), use_cpu=True, **PLAIN_STEPS)
    from_list = SimPOTrainer(tiny_model(), args, train_dataset=ROWS, processing_class=word_tokenizer())
    for trainer in (from_dataset, from_list):
        trainer.train()
    assert_same_run(from_list, from_dataset, tolerance=0)


@pytest.mark.slow
def test_a_tokenizer_without_pad_token_gives_the_same_run(tmp_path):
    plain = make_trainer(tmp_path / "plain", ROWS)
    plain.train()
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    args = SimPOConfig(str(tmp_path / "unpadded"), use_cpu=True, **PLAIN_STEPS)
    other = SimPOTrainer(tiny_model(), args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    other.train()
    assert tokenizer.pad_token is None
    assert_same_run(other, plain, tolerance=2e-5)


@pytest.mark.parametrize("name", ["./base", "~/base"])
def test_a_model_by_name_brings_its_tokenizer_and_trains_in_float32(tmp_path, monkeypatch, name):
    """The folder that a run writes by default is named after the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_model().bfloat16().save_pretrained("base")
    word_tokenizer().save_pretrained("base")
    raw = Dataset.from_list([as_text(row) for row in ROWS if min(map(len, row.values())) > 1])
    trainer = SimPOTrainer(name, train_dataset=raw)
    assert trainer.args.output_dir == "base-SimPO"
    assert trainer.processing_class.get_vocab() == word_tokenizer().get_vocab()
    assert {weight.dtype for weight in weights_of(trainer).values()} == {torch.float32}
    expected = tiny_model().bfloat16().float()
    assert_same_weights(weights_of(trainer), dict(expected.named_parameters()), tolerance=0)


# ---- The log ----


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}])
def test_logged_metrics_are_means_over_the_pairs_of_the_window(tmp_path, settings):
    """Windows of two steps, 8 + 8 and 6 + 8 pairs, with weights that stand still so that the reference can follow."""
    objective = {"sft_weight": 0.3, "sft_reduction": "token", "beta": 2.5}
    trainer = make_trainer(
        tmp_path, WITH_MARGINS, learning_rate=0.0, num_train_epochs=2, logging_steps=2, **settings, **objective
    )
    trainer.remove_callback(LoggedSteps)  # it would make every step a window
    trainer.train()
    taken = epoch_rows(WITH_MARGINS, 0) + epoch_rows(WITH_MARGINS, 1)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    slow = in_float64(tiny_model())
    for entry, window in zip(logs, (slice(16), slice(16, 30), slice(30, 44)), strict=True):
        expected = score_pairs(slow, taken[window], Settings(**objective)).metrics()
        expected.pop("loss")  # a mean over steps, as transformers reports it
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert train_log(trainer, "num_pairs_seen") == [(16,), (30,), (44,)]


@pytest.mark.slow
def test_tokens_and_pairs_seen_are_counted(tmp_path):
    """A pair's tokens are prompt + chosen and prompt + rejected."""
    trainer = make_trainer(tmp_path, ROWS, num_train_epochs=2)
    trainer.train()
    taken = epoch_rows(ROWS, 0) + epoch_rows(ROWS, 1)
    expected = [(pairs, tokens_of(taken[:pairs])) for pairs in (8, 16, 22, 30, 38, 44)]
    assert train_log(trainer, "num_pairs_seen", "num_tokens_seen") == expected


# ---- Refusals ----


def test_16_bit_weights_are_refused(tmp_path):
    with pytest.raises(SimPOError, match="trainable weights are bfloat16"):
        make_trainer(tmp_path, ROWS, model=tiny_model().bfloat16())


def test_a_model_that_scales_its_logits_in_a_way_of_its_own_is_refused(tmp_path):
    with pytest.raises(SimPOError, match="HalvedLlama changes its logits"):
        make_trainer(tmp_path, ROWS, model=halved_llama())


def test_several_accelerators_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(SimPOConfig, "n_gpu", 2)
    with pytest.raises(SimPOError, match="One process sees 2 accelerators; .*--launcher ddp --num-processes 2"):
        make_trainer(tmp_path, ROWS)


def test_training_and_evaluation_need_their_sets(tmp_path):
    with pytest.raises(SimPOError, match="`train_dataset` is required: a `Dataset` .*`eval_dataset`"):
        make_trainer(tmp_path, None)
    with pytest.raises(SimPOError, match="Training needs a train_dataset"):
        make_trainer(tmp_path, None, eval_dataset=ROWS).train()
    with pytest.raises(SimPOError, match="Evaluation needs an eval_dataset"):
        make_trainer(tmp_path, ROWS).evaluate()


@pytest.mark.parametrize("tokenized", [False, True])
def test_rows_beyond_the_positions_of_the_model_are_refused(tmp_path, tokenized):
    """Whether they come as text or as ids."""
    short = {"prompt_ids": [BOS, 3], "chosen_ids": [3, EOS], "rejected_ids": [4, EOS]}
    rows = [short, {**short, "prompt_ids": [BOS, *range(3, 20)]}, short]
    model = tiny_model(max_position_embeddings=10)
    with pytest.raises(SimPOError, match="has 20 tokens, but the model has positions for 10"):
        make_trainer(tmp_path, rows if tokenized else [as_text(row) for row in rows], model=model)


def test_a_data_set_smaller_than_a_dropped_batch_is_refused(tmp_path):
    """With `dataloader_drop_last` nothing would be left to train on."""
    trainer = make_trainer(tmp_path, ROWS[:3], dataloader_drop_last=True)
    with pytest.raises(SimPOError, match="dataloader_drop_last"):
        trainer.train()


# ---- Settings of the optimiser that pass through ----


@pytest.mark.slow
def test_the_gradient_is_clipped_after_accumulation(tmp_path):
    """max_grad_norm bounds the step over the whole batch, not that of each micro-batch."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_grad_norm": 0.01}
    recorder = GradientRecorder()
    make_trainer(tmp_path, ROWS, arguments={"callbacks": [recorder]}, **settings).train()
    for step in recorder.steps:
        assert math.sqrt(sum(gradient.square().sum().item() for gradient in step.values())) == pytest.approx(
            0.01, rel=1e-3
        )


@pytest.mark.parametrize("adapter", [False, True])
def test_the_model_has_the_tags_of_the_method(tmp_path, adapter):
    arguments = {"peft_config": LoraConfig(target_modules=["q_proj"])} if adapter else {}
    trainer = make_trainer(tmp_path, ROWS, arguments=arguments)
    assert {"simpo", "trl"} <= set(trainer.model.model_tags)


def test_a_step_has_one_sum_over_processes_and_a_logging_window_another(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, random_pairs(16), per_device_train_batch_size=2)
    calls, plain = [], trainer.accelerator.reduce
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda *args, **given: calls.append(1) or plain(*args, **given))
    trainer.train()
    windows = [entry for entry in trainer.state.log_history if "loss" in entry]
    measured = ("start", "end")
    assert len(calls) == trainer.state.global_step + len(windows) + len(measured)
