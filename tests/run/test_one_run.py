"""The run around the trainer: what is checked before anything is loaded, and the order of what follows."""

import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.model.load import load_tokenizer
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run import one_run as run_module
from simpo_trainer.run.one_run import Interrupted, resume_command, run
from simpo_trainer.train import stop
from simpo_trainer.train.config import SimPOConfig
from simpo_trainer.train.finish import finish_run


class StubTrainer:
    """Takes the trainer's place and notes what it is asked to do."""

    interrupt = False

    def __init__(self, **arguments):
        self.arguments = arguments
        self.args = arguments["args"]
        self.calls, self.callbacks = [], []
        self.eval_dataset = arguments["eval_dataset"]
        self.interrupted, self.train_metrics, self.resumed_from = False, None, None
        self.hub_model_id = "tester/out"
        self.state = SimpleNamespace(
            global_step=7,
            max_steps=7,
            save_steps=500,
            log_history=[{"step": 6, "eval_loss": 0.75}, {"step": 7, "loss": 1.0}],
        )
        self.model = SimpleNamespace(config=SimpleNamespace(use_cache=False))
        self.room = SimpleNamespace(of_model=lambda folder: 0)
        self.run_record = SimpleNamespace(save=lambda: None)
        self.health = SimpleNamespace(collapse=None)
        self.held_out = SimpleNamespace(measure_end=lambda: self.calls.append("measure_end"))
        StubTrainer.last = self

    def agreed_signal(self):
        return signal.SIGTERM

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint=None):
        for callback in self.callbacks:
            callback.on_train_begin(self.args, self.state, None)
        self.calls.append(("train", resume_from_checkpoint))
        self.resumed_from = resume_from_checkpoint and Path(resume_from_checkpoint)
        self.interrupted, self.train_metrics = self.interrupt, {"train_loss": 0.5}
        self.logged_in_training = len(self.state.log_history)

    def finish(self):
        return finish_run(self)

    def evaluate(self):
        self.calls.append("evaluate")
        return {"eval_loss": 0.25}

    def save_model(self, folder, _internal_call):
        # Any other call pushes at once, before there is an evaluation.
        assert _internal_call
        self.calls.append("save_model")
        assert self.model.config.use_cache

    def is_world_process_zero(self):
        return False  # there is no folder to seal

    def save_metrics(self, split, metrics):
        self.calls.append(("save_metrics", split))

    def save_state(self):
        self.calls.append("save_state")

    def create_model_card(self):
        self.calls.append("create_model_card")

    def push_to_hub(self):
        assert self.model.config.use_cache
        self.calls.append("push_to_hub")


class InterruptedTrainer(StubTrainer):
    interrupt = True


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A recipe in an empty folder, with data and tokenizer that need no loading."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(
        run_module, "load_preferences", lambda config, seed, conversations, on_bad_row: ("train rows", "test rows")
    )
    monkeypatch.setattr(run_module, "load_tokenizer", lambda name, args, instead: SimpleNamespace(name=instead or name))

    def make(*overrides):
        (tmp_path / "my recipe.yaml").write_text("model_name_or_path: model\ndataset_name: d\noutput_dir: runs/out\n")
        return load_recipe("my recipe.yaml", overrides)

    return make


def checkpoint(folder, complete=True):
    os.makedirs(folder)
    if complete:
        for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors"):
            with open(os.path.join(folder, name), "w") as file:
                json.dump({}, file)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("loaded before it was checked")

    monkeypatch.setattr(run_module, "load_preferences", fail)
    monkeypatch.setattr(run_module, "load_tokenizer", fail)


def test_order_of_a_run(make, caplog):
    with caplog.at_level(logging.INFO, "simpo_trainer"):
        metrics = run(make(), StubTrainer)
    trainer = StubTrainer.last
    assert trainer.calls == [
        ("train", None),
        "save_model",
        ("save_metrics", "train"),
        "save_state",
        "evaluate",
        ("save_metrics", "train"),  # again: a full disk may have cut it
        ("save_metrics", "eval"),
        "save_state",
        "measure_end",
        "create_model_card",
    ]
    assert trainer.recipe_facts.name == "my recipe.yaml"
    assert metrics == {"train_loss": 0.5, "eval_loss": 0.25}
    assert not trainer.model.config.use_cache
    assert trainer.arguments["model"] == "model"
    assert trainer.arguments["train_dataset"] == "train rows"
    assert trainer.arguments["eval_dataset"] == "test rows"
    assert trainer.arguments["processing_class"].name == "model"
    assert trainer.arguments["peft_config"] is None
    assert "Done: model, tokenizer and metrics are in runs/out" in caplog.text


def test_without_evaluation_pairs(make, monkeypatch):
    monkeypatch.setattr(
        run_module, "load_preferences", lambda config, seed, conversations, on_bad_row: ("train rows", None)
    )
    assert run(make(), StubTrainer) == {"train_loss": 0.5}
    assert "evaluate" not in StubTrainer.last.calls
    with pytest.raises(SimPOError, match="there are no evaluation pairs. Set test_split_size: 0.05"):
        run(make("--eval_strategy", "epoch"), StubTrainer)


def test_the_evaluation_of_the_last_step_is_not_repeated(make):
    class EvaluatedTrainer(StubTrainer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.state.log_history.append({"step": 7, "eval_loss": 0.125, "epoch": 1.0})

    assert run(make(), EvaluatedTrainer) == {"train_loss": 0.5, "eval_loss": 0.125}
    assert StubTrainer.last.calls[-4] == ("save_metrics", "eval") and "evaluate" not in StubTrainer.last.calls
    # The best model, loaded at the end, may be another than the last.
    best = make("--eval_strategy=epoch", "--save_strategy=epoch", "--load_best_model_at_end")
    assert run(best, EvaluatedTrainer)["eval_loss"] == 0.25


def test_adapter(make):
    run(make("--use_peft", "--lora_r", "4"), StubTrainer)
    assert StubTrainer.last.arguments["peft_config"].r == 4


def test_a_push_brings_the_card_itself(make, monkeypatch):
    monkeypatch.setattr(run_module, "check_credentials", lambda args: None)
    run(make("--push_to_hub"), StubTrainer)
    assert StubTrainer.last.calls[-4:] == [("save_metrics", "eval"), "save_state", "measure_end", "push_to_hub"]
    assert not StubTrainer.last.model.config.use_cache


def test_a_push_that_fails_says_where_the_model_is(make, monkeypatch):
    class OfflineTrainer(StubTrainer):
        def push_to_hub(self):
            raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(run_module, "check_credentials", lambda args: None)
    with pytest.raises(SimPOError) as caught:
        run(make("--push_to_hub"), OfflineTrainer)
    assert str(caught.value) == (
        "The training is done and the model is saved in runs/out, but it could not be pushed to the Hub: no route to "
        "host. Nothing is lost. Push it when the Hub can be reached: hf upload tester/out runs/out "
        "--include '*.safetensors' --include '*.json' --include README.md --include '*.png' --include '*.jinja' "
        "--include '*.model' --include vocab.txt --include merges.txt --exclude '_*' --exclude 'checkpoint-*' "
        "--exclude training_args.bin --exclude 'runs/*' --exclude seal.json --exclude pair_scores.json"
    )
    assert ("save_metrics", "eval") in StubTrainer.last.calls


@pytest.mark.usefixtures("nothing_is_loaded")
def test_credentials_and_packages_are_checked_before_anything_is_loaded(make, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "no such file")
    with pytest.raises(SimPOError, match="push_to_hub is true, but there is no token of the Hub here"):
        run(make("--push_to_hub"), StubTrainer)
    with pytest.raises(SimPOError, match="deepspeed is set, but not installed"):
        monkeypatch.setattr("simpo_trainer.recipe.load.has_package", lambda name: False)
        make("--deepspeed", "ds.json")


STAND_STILL = "at SimPO's learning rates steps are too small for 16-bit weights: they would stand still. Load the model"


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
@pytest.mark.parametrize(
    "given", ["--dtype=bfloat16", "--dtype=float16", "--model_init_kwargs={dtype: torch.bfloat16}"]
)
def test_16_bit_weights_that_train_are_refused_before_anything_is_loaded(make, method, given):
    name = "bfloat16" if "bfloat16" in given else "float16"
    with pytest.raises(SimPOError, match=f"dtype is {name}, and the whole model trains; {STAND_STILL}"):
        run(make(given, f"--method={method}"), StubTrainer)


def test_16_bit_weights_that_do_not_train_or_are_copied_are_accepted(make, monkeypatch):
    run(make("--dtype=bfloat16", "--use_peft"), StubTrainer)
    run(make("--dtype=float32"), StubTrainer)
    run(make("--dtype=auto"), StubTrainer)  # the checkpoint's, which the trainer checks
    with open("model/adapter_config.json", "w") as file:  # a saved adapter, whose base is frozen
        file.write("{}")
    run(make("--dtype=bfloat16"), StubTrainer)
    os.remove("model/adapter_config.json")
    recipe = make("--dtype=bfloat16")
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # by `accelerate launch`
        run(recipe, StubTrainer)
    recipe.training.deepspeed = "zero2.json"
    monkeypatch.setattr("simpo_trainer.run.packages.has_package", lambda name: True)
    run(recipe, StubTrainer)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--torch_compile_backend=inducter", "torch_compile_backend is inducter, .* Did you mean inductor"),
        ("--torch_compile_mode=foo", "torch_compile_mode is foo: .*max-autotune.* Correct it, or leave it out"),
        ("--fsdp=true", "fsdp is set, .* this process trains alone. Leave fsdp out and start the run with --launcher"),
    ],
)
def test_choices_that_cannot_work_are_refused_before_anything_is_loaded(make, given, message):
    with pytest.raises(SimPOError, match=message):
        run(make(given), StubTrainer)


@pytest.mark.slow
def test_choices_that_work_are_accepted(make):
    run(make("--torch_compile_backend=INDUCTOR", "--torch_compile_mode=reduce-overhead"), StubTrainer)


def test_notices_of_the_recipe_are_said(make, caplog):
    recipe = make()
    recipe.notices.append("simpo_gamma was read as gamma_beta_ratio")
    run(recipe, StubTrainer)
    assert "simpo_gamma was read as gamma_beta_ratio" in caplog.text


def test_an_interrupted_run_saves_nothing_as_if_finished(make, caplog):
    caplog.set_level(logging.INFO, "simpo_trainer")
    with pytest.raises(Interrupted) as caught:
        run(make("--beta=2.5", "--run_name", "it's mine"), InterruptedTrainer)
    assert StubTrainer.last.calls == [("train", None)]
    assert caught.value.number == signal.SIGTERM
    words = shlex.split(caught.value.command)
    assert words[:3] == ["simpo", "train", "my recipe.yaml"]
    assert words[3:5] == ["--beta=2.5", "--run_name=it's mine"]
    assert words[5:] == ["--resume_from_checkpoint=runs/out/checkpoint-7"]
    assert f"Stopped at step 7. Go on with:\n  {caught.value.command}" in caplog.text
    checkpoint("runs/out/checkpoint-7")
    resumed = load_recipe(words[2], words[3:])
    run(resumed, StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", "runs/out/checkpoint-7")


def test_a_run_that_collapsed_is_an_error_with_two_ways_to_go_on(make):
    """From an earlier checkpoint with other settings, or as it is."""
    line = "Step 7, held-out pairs: chosen answers fell."

    class CollapsedTrainer(InterruptedTrainer):
        def train(self, resume_from_checkpoint=None):
            super().train(resume_from_checkpoint)
            checkpoint("runs/out/checkpoint-5")
            self.health.collapse = line

    with pytest.raises(SimPOError) as caught:
        run(make("--stop_on_collapse", "true"), CollapsedTrainer)
    text = str(caught.value)
    assert text.startswith(f"Stopped at step 7, because stop_on_collapse is true. {line}\n")
    assert "Train from an earlier one (checkpoint-5)" in text and "saved in runs/out/checkpoint-7" in text
    words = "--stop_on_collapse=false --resume_from_checkpoint=runs/out/checkpoint-7"
    assert text.endswith(f"simpo train 'my recipe.yaml' {words}")


def test_the_resume_command_replaces_the_old_checkpoint_and_hides_the_token(make, tmp_path):
    recipe = make("--hub_token", "hf_secret", "--resume_from_checkpoint")
    command = resume_command(recipe, tmp_path / "checkpoint-9")
    assert "hf_secret" not in command
    assert command.endswith(f'--hub_token="$HF_TOKEN" --resume_from_checkpoint={tmp_path}/checkpoint-9')
    assert command.count("resume_from_checkpoint") == 1


def test_the_resume_command_of_several_processes_goes_through_their_launcher(make, tmp_path, monkeypatch):
    recipe = make()
    monkeypatch.setattr(SimPOConfig, "world_size", 2)
    assert resume_command(recipe, tmp_path).startswith("<launcher> -m simpo_trainer train 'my recipe.yaml' --resume")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_output_dir_is_tried_before_anything_is_loaded(make):
    recipe = make("--output_dir", "taken/out")
    with open("taken", "w"):
        pass
    with pytest.raises(SimPOError, match="output_dir taken/out cannot be written: Not a directory. Set output_dir"):
        run(recipe, StubTrainer)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_dir_without_permission(make, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(SimPOError, match="output_dir closed cannot be written: Permission denied"):
        run(make("--output_dir", "closed"), StubTrainer)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "The model folder './nowhere' does not exist"),
        ("/nowhere", "The model folder '/nowhere' does not exist"),
        ("a/b/c", "The model folder 'a/b/c' does not exist"),
        ("runs/first", "The model folder 'runs/first' does not exist"),
        ("model/config.json", "The model folder 'model/config.json' does not exist or is not a folder"),
        ("runs", "The folder 'runs' holds no config.json, so it is not a model"),
    ],
)
def test_the_model_folder_is_looked_for_first(make, name, message):
    with pytest.raises(SimPOError, match=message):
        run(make("--model_name_or_path", name), StubTrainer)


@pytest.mark.parametrize("name", ["some-model", "some/model", "model"])
def test_names_of_models_that_may_exist(make, name):
    run(make("--model_name_or_path", name), StubTrainer)
    assert StubTrainer.last.arguments["model"] == name


def test_resume_from_the_last_complete_checkpoint(make):
    checkpoint("runs/out/checkpoint-9")
    checkpoint("runs/out/checkpoint-10")
    checkpoint("runs/out/checkpoint-11", complete=False)
    run(make("--resume_from_checkpoint"), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", "runs/out/checkpoint-10")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_no_checkpoint_to_resume_from(make):
    with pytest.raises(
        SimPOError, match="there is no complete checkpoint in runs/out. Leave resume_from_checkpoint out"
    ):
        run(make("--resume_from_checkpoint"), StubTrainer)
    with pytest.raises(
        SimPOError, match="runs/out/checkpoint-3 is not a checkpoint-N folder.*no complete one in runs/out"
    ):
        run(make("--resume_from_checkpoint", "runs/out/checkpoint-3"), StubTrainer)
    checkpoint("runs/out/checkpoint-2")
    with pytest.raises(SimPOError, match="Complete ones are: runs/out/checkpoint-2"):
        run(make("--resume_from_checkpoint", "runs/out/checkpoint-3"), StubTrainer)


def test_starting_over_in_a_used_folder_sets_its_checkpoints_aside(make, caplog):
    """Otherwise a later resume would take the old run's last checkpoint for this run's."""
    for step in (2, 12):
        checkpoint(f"runs/out/checkpoint-{step}")
    run(make(), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", None)
    assert sorted(os.listdir("runs/out")) == ["_earlier-checkpoint-12", "_earlier-checkpoint-2"]
    assert "up to checkpoint-12; this run starts over" in caplog.text
    assert "--resume_from_checkpoint runs/out/_earlier-checkpoint-12" in caplog.text
    checkpoint("runs/out/checkpoint-12")
    run(make(), StubTrainer)
    assert "_earlier-2-checkpoint-12" in os.listdir("runs/out")
    run(make("--resume_from_checkpoint", "runs/out/_earlier-checkpoint-12"), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", "runs/out/_earlier-checkpoint-12")


@pytest.mark.parametrize("elsewhere", ["runs/old/checkpoint-5", "runs/out/_earlier-checkpoint-5"])
def test_going_on_from_another_run_sets_the_checkpoints_in_its_folder_aside(make, elsewhere, caplog):
    """A later resume from the newest would otherwise go on from them; what this run goes on from stays."""
    for folder in (elsewhere, "runs/out/checkpoint-2", "runs/out/checkpoint-12"):
        checkpoint(folder)
    run(make("--resume_from_checkpoint", elsewhere), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", elsewhere)
    left = {"_earlier-checkpoint-12", "_earlier-checkpoint-2"}
    assert set(os.listdir("runs/out")) - {"_earlier-checkpoint-5"} == left and os.path.exists(elsewhere)
    assert f"of an earlier run up to checkpoint-12; this run goes on from {elsewhere}, and they are kept" in caplog.text
    with pytest.raises(SimPOError, match="no complete checkpoint in runs/out"):
        run(make("--resume_from_checkpoint"), StubTrainer)


@pytest.mark.parametrize(
    "written", ["runs/out/checkpoint-10", "runs/out/checkpoint-10/", "runs/out/../out/checkpoint-10"]
)
def test_going_on_from_before_the_end_sets_the_later_checkpoints_aside(make, written, caplog):
    """Until this run has passed them, the newest would be one of the training that it replaces."""
    for step in (5, 10, 20, 30):
        checkpoint(f"runs/out/checkpoint-{step}")
    run(make("--resume_from_checkpoint", written), StubTrainer)
    own = ["checkpoint-10", "checkpoint-5"]
    assert sorted(os.listdir("runs/out")) == ["_earlier-checkpoint-20", "_earlier-checkpoint-30", *own]
    assert "holds checkpoints of later steps up to checkpoint-30; this run goes on from runs/out/" in caplog.text
    assert "--resume_from_checkpoint runs/out/_earlier-checkpoint-30" in caplog.text
    caplog.clear()
    run(make("--resume_from_checkpoint"), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", "runs/out/checkpoint-10")
    assert "kept as" not in caplog.text


@pytest.mark.parametrize("broken", ["load_preferences", "load_tokenizer", "_trainer", "_train"])
def test_a_start_that_fails_moves_nothing(make, broken, monkeypatch):
    """A typo in dataset_name must not rename the checkpoints of the run before."""
    checkpoint("runs/out/checkpoint-2")

    def fail(*arguments, **settings):
        raise SimPOError("not found")

    monkeypatch.setattr(run_module, broken, fail)
    with pytest.raises(SimPOError, match="not found"):
        run(make(), StubTrainer)
    assert os.listdir("runs/out") == ["checkpoint-2"]


def test_a_trailing_slash_names_the_same_checkpoint(make, caplog):
    """Only at the end, before the model was saved, its step could not be read from the name."""
    checkpoint("runs/out/checkpoint-7")
    run(make("--resume_from_checkpoint", "runs/out/checkpoint-7/"), StubTrainer)
    assert StubTrainer.last.calls[0] == ("train", "runs/out/checkpoint-7")
    assert "checkpoint-7 is already the last step of this run" in caplog.text


@pytest.mark.parametrize("stage", ["load_preferences", "load_tokenizer"])
def test_sigterm_before_training_ends_the_run_at_once(make, stage, monkeypatch, caplog):
    monkeypatch.setattr(stop, "_end_now", lambda number: sys.exit(128 + number))  # not the test run
    monkeypatch.setattr(run_module, stage, lambda *arguments, **settings: os.kill(os.getpid(), signal.SIGTERM))
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, caplog.at_level(logging.INFO, "simpo_trainer"):
        run(make(), StubTrainer)
    assert caught.value.code == 143
    assert caplog.messages == [stop.NOTHING_YET]
    assert signal.getsignal(signal.SIGTERM) is previous


@pytest.mark.parametrize("during", ["train", "save_model"])
def test_sigterm_at_the_end_of_training_does_not_lose_the_model(make, during, monkeypatch, caplog):
    """Behind the last step, or while the model is saved: it is saved, and then the process ends."""
    plain = getattr(StubTrainer, during)

    def signalled(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments, **settings)

    monkeypatch.setattr(StubTrainer, during, signalled)
    with pytest.raises(SystemExit) as caught, caplog.at_level(logging.INFO, "simpo_trainer"):
        run(make(), StubTrainer)
    assert caught.value.code == 143
    assert StubTrainer.last.calls[1:] == ["save_model", ("save_metrics", "train"), "save_state"]
    assert caplog.messages[-1].startswith("Stopped: the trained model is in runs/out")


@pytest.mark.parametrize("key", ["model_name_or_path", "tokenizer_name_or_path"])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_a_model_is_made_from_is_not_overwritten(make, key):
    overrides = {"output_dir": "./model", "model_name_or_path": "other/model", key: "model"}
    with pytest.raises(SimPOError, match=f"output_dir and {key} are the same folder, model; .*Set output_dir"):
        run(make(*(f"--{name}={value}" for name, value in overrides.items())), StubTrainer)


def test_a_run_that_was_at_its_end_keeps_its_metrics(make, caplog):
    checkpoint("runs/out/checkpoint-7")  # the step at which StubTrainer ends
    run(make("--resume_from_checkpoint"), StubTrainer)
    assert ("save_metrics", "train") not in StubTrainer.last.calls
    assert "checkpoint-7 is already the last step of this run; nothing was trained" in caplog.text


def test_tokens_are_not_shown(make, tmp_path):
    recipe = make("--model_init_kwargs", "{token: hf_abcdefghijklmnopqrstuvwx}")
    assert "hf_abc" not in resume_command(recipe, tmp_path)
    assert "hf_abc" not in str(recipe.resolved())


def test_the_chat_template_and_tokenizer_of_a_recipe(make, tmp_path, monkeypatch):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    run(make("--chat_template", str(template), "--tokenizer_name_or_path", "other"), StubTrainer)
    tokenizer = StubTrainer.last.arguments["processing_class"]
    assert (tokenizer.name, tokenizer.chat_template) == ("other", "{{ messages }}")
    run(make(), StubTrainer)
    assert not hasattr(StubTrainer.last.arguments["processing_class"], "chat_template")
    monkeypatch.setattr(run_module, "load_preferences", None)  # a wrong template is found before
    with pytest.raises(SimPOError, match="nowhere.jinja"):
        run(make("--chat_template", "nowhere.jinja"), StubTrainer)


def test_a_launched_run_resumes_through_its_launcher(make, tmp_path, monkeypatch):
    recipe = make("--beta", "3")
    monkeypatch.setattr(SimPOConfig, "world_size", 2)
    monkeypatch.setenv("SIMPO_LAUNCHER_OPTIONS", "--launcher ddp --num-processes 2")
    command = resume_command(recipe, tmp_path)
    assert command.startswith("simpo train 'my recipe.yaml' --launcher ddp --num-processes 2 --beta=3 --resume_from")


def test_a_tokenizer_that_cannot_be_loaded(make):
    with pytest.raises(SimPOError, match="The tokenizer of 'model' could not be loaded: there are no tokenizer files"):
        load_tokenizer("model", make().training)
