"""Ending a run early and going on: from a checkpoint, after Ctrl-C and after other signals."""

import json
import logging
import os
import signal
import sys
import threading
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config, TrainerCallback

from models import random_pairs, tiny_model
from runs import assert_same_weights, make_trainer, train_log, weights_of
from simpo_trainer.baselines.settings import build_arguments
from simpo_trainer.train import stop
from simpo_trainer.train.stop import STOP_SIGNALS, StopRequest

ROWS = random_pairs(22)
# Two epochs of 8 + 8 + 6 pairs with the optimiser and schedule of a real run, which a checkpoint must hold.
SETTINGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "save_strategy": "steps",
    "save_steps": 1,
}
LOGGED = ("loss", "grad_norm", "learning_rate", "rewards/margins", "num_pairs_seen", "num_tokens_seen", "epoch")


def dropout_model(seed: int = 0):
    return tiny_model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97), seed=seed)


def assert_resumed(resumed, whole, step: int) -> None:
    """What follows the checkpoint is what followed it in the uninterrupted run, to the last bit but one."""
    assert resumed.state.global_step == whole.state.global_step
    logs, expected = train_log(resumed, *LOGGED), train_log(whole, *LOGGED)
    assert len(logs) == len(expected) == 6
    torch.testing.assert_close(torch.tensor(logs[step:]), torch.tensor(expected[step:]), rtol=1e-6, atol=0)
    assert_same_weights(weights_of(resumed), weights_of(whole), tolerance=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint after each of its six steps."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), ROWS, **SETTINGS)
    trainer.train()
    assert trainer.state.global_step == 6 and not trainer.interrupted
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, whole, step, caplog):
    """From the middle of an epoch, from its end, from the second epoch; weights come from the checkpoint alone."""
    resumed = make_trainer(tmp_path, ROWS, model=tiny_model(seed=5), **{**SETTINGS, "save_strategy": "no"})
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert_resumed(resumed, whole, step)
    assert f"Resuming after step {step}." in caplog.text and "Starting margin" not in caplog.text


@pytest.mark.slow
def test_dropout_goes_on_where_it_stopped(tmp_path):
    """With dropout left on, the random state of the checkpoint counts."""
    settings = {**SETTINGS, "disable_dropout": False}
    whole = make_trainer(tmp_path / "whole", ROWS, model=dropout_model(), **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", ROWS, model=dropout_model(5), **{**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_resumed(resumed, whole, 4)


@pytest.mark.slow
def test_an_adapter_is_resumed(tmp_path):
    def adapter():
        torch.manual_seed(1)
        return {"peft_config": LoraConfig(target_modules=["q_proj", "up_proj"], r=4, task_type="CAUSAL_LM")}

    whole = make_trainer(tmp_path / "whole", ROWS, arguments=adapter(), **SETTINGS)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", ROWS, arguments=adapter(), **{**SETTINGS, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_resumed(resumed, whole, 4)


# ---- Signals ----


@pytest.fixture
def survives(monkeypatch):
    """SIGTERM ends this process by an exception."""
    plain = stop._end_now
    monkeypatch.setattr(stop, "_end_now", lambda n: plain(n) if n == signal.SIGINT else sys.exit(128 + n))


class SendSignal(TrainerCallback):
    """Sends a signal to this process in the middle of a step, once or more."""

    def __init__(self, step: int, number: int = signal.SIGINT, *, times: int = 1):
        self.step = step
        self.number = number
        self.times = times

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class SignalIn(TrainerCallback):
    """Sends SIGTERM to this process while it evaluates or saves, at one step."""

    def __init__(self, event: str, step: int):
        setattr(self, event, self._send)
        self.step = step

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("event", ["on_prediction_step", "on_save"])
@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_a_signal_in_an_evaluation_or_a_checkpoint_makes_no_further_step(tmp_path, whole, event, strategy):
    """A scheduler may wait for seconds only. Under `best`, the evaluation alone decides what is saved otherwise."""
    settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": strategy, "save_steps": 2}
    # The loss gets worse with this metric, so that only the first evaluation is the best.
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True} if strategy == "best" else {}
    step = 2 if event == "on_save" else 4
    callbacks = {"callbacks": [SignalIn(event, step)]}
    stopped = make_trainer(tmp_path, ROWS, eval_dataset=Dataset.from_list(ROWS), arguments=callbacks, **settings)
    stopped.train()
    assert stopped.interrupted and stopped.state.global_step == step
    assert f"checkpoint-{step}" in [folder.name for folder in tmp_path.glob("checkpoint-*")]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "Interrupted"),
        (signal.SIGTERM, "Asked to stop by SIGTERM"),
        (signal.SIGUSR1, "Asked to stop by SIGUSR1"),
        (signal.SIGUSR2, "Asked to stop by SIGUSR2"),
        (signal.SIGHUP, "Asked to stop by SIGHUP"),
    ],
)
@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_and_saves_it_for_a_resumed_run(tmp_path, whole, step, number, said, caplog):
    """At an end of an epoch and inside one, though the settings save nothing."""
    settings = {**SETTINGS, "save_strategy": "no"}
    stopped = make_trainer(tmp_path, ROWS, arguments={"callbacks": [SendSignal(step, number)]}, **settings)
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        stopped.train()
    assert stopped.interrupted
    assert stopped.agreed_signal() == number
    assert stopped.state.global_step == step
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert json.loads((tmp_path / "run_manifest.json").read_text())["status"] == "interrupted"
    assert f"{said}: finishing the step, then saving a checkpoint" in caplog.text

    resumed = make_trainer(tmp_path / "resumed", ROWS, model=tiny_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert not resumed.interrupted
    assert_resumed(resumed, whole, step)


@pytest.mark.slow
def test_the_same_trainer_may_go_on_after_ctrl_c(tmp_path, whole):
    """An earlier interruption is forgotten when training starts again."""
    trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": [SendSignal(2)]}, **SETTINGS)
    trainer.train()
    assert trainer.interrupted
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not trainer.interrupted
    assert_resumed(trainer, whole, 2)


def end_of(number: int) -> type[BaseException]:
    return KeyboardInterrupt if number == signal.SIGINT else SystemExit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_stops_at_once(tmp_path, number, monkeypatch, survives):
    monkeypatch.setattr(stop, "_SAME", 0)
    trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": [SendSignal(2, number, times=2)]}, **SETTINGS)
    previous = signal.getsignal(number)
    with pytest.raises(end_of(number)):
        trainer.train()
    assert trainer.state.global_step == 1
    assert signal.getsignal(number) is previous


def test_a_sigterm_that_comes_twice_together_is_one(tmp_path):
    """A scheduler signals the whole group, and the launcher in it passes the signal on."""
    callbacks = [SendSignal(2, signal.SIGTERM, times=3)]
    trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": callbacks}, **SETTINGS)
    trainer.train()
    assert trainer.interrupted and trainer.state.global_step == 2


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_after_a_while_ends_the_process(number, monkeypatch, survives):
    """Together with the first, only a second Ctrl-C is one: nobody else presses a key twice."""
    with StopRequest() as request, request.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with nullcontext() if number != signal.SIGINT else pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        monkeypatch.setattr(stop, "_SAME", 0)
        with pytest.raises(end_of(number)):
            os.kill(os.getpid(), number)
        assert request.number == signal.SIGTERM


def test_the_end_of_the_launcher_is_no_second_signal(monkeypatch, survives):
    """It died of the first one, and the kernel tells by SIGTERM; after that, a second signal is one."""
    monkeypatch.setattr(stop, "_SAME", 0)
    with StopRequest() as request, request.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        parent = os.getppid()
        monkeypatch.setattr(os, "getppid", lambda: parent + 1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_jit_checkpoints_are_replaced_with_a_notice(tmp_path, caplog):
    """transformers' callback took SIGTERM for itself, and the record told of a finished run."""
    settings = {**SETTINGS, "enable_jit_checkpoint": True, "save_strategy": "no"}
    callbacks = [SendSignal(2, signal.SIGTERM)]
    trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": callbacks}, **settings)
    assert "enable_jit_checkpoint does nothing here: SIGTERM always ends a run with a checkpoint" in caplog.text
    trainer.train()
    assert trainer.interrupted and trainer.state.global_step == 2
    baseline = build_arguments("dpo", trainer.args, {"output_dir": str(tmp_path), "enable_jit_checkpoint": True})
    assert not baseline.enable_jit_checkpoint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_are_taken_over_during_training_only(tmp_path, number):
    """Whatever handled them before handles them again, also when training fails."""
    handlers = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            handlers.append(signal.getsignal(number))
            raise RuntimeError("enough")

    previous = signal.getsignal(number)
    with pytest.raises(RuntimeError, match="enough"):
        make_trainer(tmp_path, ROWS, arguments={"callbacks": [Look()]}).train()
    assert handlers[0] is not previous
    assert signal.getsignal(number) is previous


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(tmp_path, number):
    """As under nohup, and SIGINT in a background job of a shell."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path, ROWS, arguments={"callbacks": [SendSignal(2, number)]}, **SETTINGS)
        trainer.train()
    finally:
        signal.signal(number, previous)
    assert not trainer.interrupted and trainer.state.global_step == 6


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_training_a_signal_ends_the_process(number, survives):
    """Nothing is lost yet; what came while a signal was deferred is obeyed when asked for."""
    with StopRequest() as request:
        with pytest.raises(end_of(number)) as caught:
            os.kill(os.getpid(), number)
        with request.deferred():
            os.kill(os.getpid(), number)
        assert request.number == number
        with pytest.raises(end_of(number)):
            request.obey()
    if number != signal.SIGINT:
        assert caught.value.code == 128 + number


def test_a_process_that_was_forked_meanwhile_does_not_defer():
    """Such as those of a library's pool, which it ends by SIGTERM and waits for."""
    with StopRequest() as request, request.deferred():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not request.requested


def test_a_request_may_be_entered_again(tmp_path):
    """A run enters it before the data is loaded, and its trainer once more."""
    previous = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        own = signal.getsignal(signal.SIGTERM)
        with request, request.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == own != previous
        assert request.requested
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_request_in_another_thread_leaves_signals_alone():
    """Only the main thread may handle them."""
    seen = []

    def enter():
        with StopRequest() as request:
            seen.append((signal.getsignal(signal.SIGINT), request.requested))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGINT), False)]
