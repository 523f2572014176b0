"""The command line: exit statuses, messages, and what reaches the run."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
from typer.testing import CliRunner

from simpo_trainer import SimPOError
from simpo_trainer._version import __version__
from simpo_trainer.cli.app import app, main
from simpo_trainer.run import one_run as run_module
from simpo_trainer.run import supervision
from simpo_trainer.train.stop import NOTHING_YET, STOP_SIGNALS

ROOT = Path(__file__).parents[2]
# Two ways to start a training without the installed command.
MODULE, SCRIPT = ["-m", "simpo_trainer", "train"], [str(ROOT / "scripts" / "run_simpo.py")]
RECIPE = "model_name_or_path: some/model\ndataset_name: some/pairs\noutput_dir: runs/test\nbeta: 2.5\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def runs(monkeypatch):
    """The recipes that reach run(), which does nothing else."""
    seen = []
    monkeypatch.setattr(run_module, "run", lambda recipe: seen.append(recipe))
    return seen


def simpo(*words):
    return CliRunner().invoke(app, list(words))


def test_train_passes_recipe_and_overrides_on(recipe, runs):
    result = simpo(
        "train", recipe, "--learning-rate", "1e-6", "--max_steps=3", "--max_grad_norm", "-1", "--push_to_hub"
    )
    assert result.exit_code == 0, result.output
    training = runs[0].training
    assert (training.beta, training.learning_rate, training.max_steps) == (2.5, 1e-6, 3)
    assert (training.max_grad_norm, training.push_to_hub) == (-1, True)


def test_an_error_is_a_message_without_a_traceback(recipe, runs):
    result = simpo("train", recipe, "--bta", "2")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "unknown key bta. Did you mean beta?" in result.stderr
    assert "Traceback" not in result.output
    assert runs == []


def test_brackets_in_a_message_are_no_markup(recipe, runs):
    assert "unknown key a[bold]" in simpo("train", recipe, "--a[bold]", "1").stderr


def test_a_defect_keeps_its_traceback(recipe, monkeypatch):
    def broken(recipe):
        raise RuntimeError("defect")

    monkeypatch.setattr(run_module, "run", broken)
    assert isinstance(simpo("train", recipe).exception, RuntimeError)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_run_that_a_signal_stopped_exits_with_128_and_its_number(recipe, monkeypatch, number):
    """Together with the other processes: a launcher ends all where one has ended so, be it in the middle of saving."""

    def interrupted(recipe):
        raise run_module.Interrupted("simpo train r.yaml", number)

    waits = []
    monkeypatch.setattr(run_module, "run", interrupted)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda state: waits.append(state))
    assert simpo("train", recipe).exit_code == 128 + number
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "--beta", "2", "recipe.yaml"], "The recipe comes first, before --beta"),
        (["trian", "recipe.yaml"], "No such command 'trian'. Did you mean 'train'?"),
        (["--verson"], "--verson"),
        (["train", "recipe.yaml", "--num-processes", "2"], "Add --launcher to choose"),
        (["train", "recipe.yaml", "--launcher", "ddp", "--num-processes", "0"], "Invalid value for '--num-processes'"),
    ],
)
def test_wrong_usage_exits_with_2(words, message):
    result = simpo(*words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_main_exits_with_the_status(recipe, runs, capsys, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        main(["train", recipe, "--bta", "2"])
    assert caught.value.code == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["simpo", "train", recipe])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert len(runs) == 1


def test_version_says_what_a_bug_report_needs(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = simpo("--version")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[:2] == ["simpo-trainer", "python"]
    assert {"torch", "transformers", "trl", "accelerate", "peft", "datasets", "platform", "devices"} <= set(names)
    assert __version__ in result.stdout
    for secret in ("hf_secret", str(Path.home()), sys.prefix, os.uname().nodename):
        assert secret not in result.stdout


def test_help_lists_the_keys():
    assert "train" in simpo("--help").stdout
    result = simpo("train", "--help")
    assert result.exit_code == 0
    for text in ("gamma_beta_ratio", "dataset_train_split", "lora_r", "TrainingArguments"):
        assert text in result.stdout
    assert "deepspeed" not in result.stdout  # the parent's keys are linked to, not listed


def test_the_launcher_script_is_the_same_command(recipe, runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", recipe, "--beta", "3"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / "run_simpo.py"), run_name="__main__")
    assert caught.value.code == 0
    assert runs[0].training.beta == 3


def test_the_module_is_the_same_command(recipe, runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["simpo", "train", recipe, "--beta", "3"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("simpo_trainer", run_name="__main__")
    assert caught.value.code == 0
    assert runs[0].training.beta == 3


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, MODULE),
        pytest.param(signal.SIGTERM, MODULE, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, SCRIPT, marks=pytest.mark.slow),
        (signal.SIGTERM, SCRIPT),
        (signal.SIGUSR1, MODULE),
        pytest.param(signal.SIGUSR2, MODULE, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, MODULE, marks=pytest.mark.slow),
        (signal.SIGHUP, [*MODULE, "--launcher", "ddp"]),
    ],
)
def test_a_signal_while_the_libraries_are_loaded_is_answered(recipe, tmp_path, command, number):
    """An import of torch that sends the signal to its own process, instead of seconds in which one may come."""
    (tmp_path / "torch.py").write_text(f"import os, time\nos.kill(os.getpid(), {number:d})\ntime.sleep(9)")
    done = subprocess.run(
        [sys.executable, *command, recipe],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        # A test run in the background of a shell ignores them.
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in STOP_SIGNALS],
    )
    assert done.stderr == f"{NOTHING_YET}\n"
    assert done.returncode in (128 + number, -number)  # both are the first to a shell


@pytest.fixture
def launches(monkeypatch):
    """What reaches the launcher, which starts nothing and ends with status 7."""
    seen = []
    monkeypatch.setattr(supervision, "supervise", lambda words, options, variables: seen.append((words, options)) or 7)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return seen


@pytest.mark.parametrize("option", ["--num-processes", "--num_processes"])
def test_launcher_gets_recipe_and_overrides(recipe, runs, launches, option):
    result = simpo(
        "train", recipe, "--beta", "3", "--launcher", "ddp", option, "1", "--hub_token=hf_a", "--push_to_hub"
    )
    assert result.exit_code == 7, result.output
    [(words, options)] = launches
    assert words[2:] == [
        *("--num_processes", "1", "--module", "simpo_trainer", "train"),
        *(recipe, "--beta", "3", "--hub_token=hf_a", "--push_to_hub"),
    ]
    assert options == "--launcher ddp --num-processes 1"
    [line] = result.stderr.splitlines()
    assert line.startswith("Launching: ")
    assert line.endswith(f'--module simpo_trainer train {recipe} --beta 3 --hub_token="$HF_TOKEN" --push_to_hub')
    assert runs == []


def test_machines_reach_the_launcher(recipe, launches):
    machines = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "127.0.0.1"]
    result = simpo("train", recipe, "--launcher", "ddp", "--num-processes", "2", *machines, "--main-process-port", "5")
    assert result.exit_code == 7, result.output
    assert launches[0][0][4:12] == [*machines, "--main_process_port", "5"]


def test_nothing_is_launched_for_a_recipe_that_is_not_there(launches):
    result = simpo("train", "no-such-recipe.yaml", "--launcher", "ddp")
    assert result.exit_code == 1
    assert "no-such-recipe.yaml not found" in result.stderr
    assert "Launching" not in result.stderr
    assert launches == []


def test_a_launched_process_leaves_its_error_to_its_parent(recipe, tmp_path, monkeypatch):
    """The parent shows one of them; under another launcher each process shows its own."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert "unknown key bta" in simpo("train", recipe, "--bta", "2").stderr
    assert not file.exists()
    monkeypatch.setenv(supervision.LAUNCHER_OPTIONS, "--launcher ddp")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = simpo("train", recipe, "--bta", "2")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "unknown key bta" in file.read_text()


def test_an_error_of_a_launched_process_is_shown(recipe, monkeypatch):
    def failing(words, options, variables):
        raise SimPOError("what the process said")

    monkeypatch.setattr(supervision, "supervise", failing)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    result = simpo("train", recipe, "--launcher", "ddp", "--num-processes", "1")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: what the process said"
