"""Launchers: their files under accelerate's own reader, the words for `accelerate launch`, and what is refused."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from simpo_trainer import SimPOConfig, SimPOError
from simpo_trainer.run import launcher
from simpo_trainer.run.launcher import Processes, launch_words, launcher_files, shown

ROOT = Path(__file__).parents[2]
FILES = launcher_files()
SHARDED = ("fsdp2", "fsdp2-offload", "zero2", "zero3", "zero3-offload")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight accelerators and DeepSpeed, whatever is here; called with another number, as many."""

    def has(accelerators, *, deepspeed=True):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: accelerators)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerators > 0)
        monkeypatch.setattr(launcher, "find_spec", lambda name: object() if deepspeed else None)

    for name in ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    has(8)
    return has


def words(name, *recipe_words, **processes):
    return launch_words(name, recipe_words or ["r.yaml"], Processes(**processes))


def validated(name, **processes):
    """What accelerate makes of the command."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words(name, **processes)))
    return arguments


def environment(name):
    """What accelerate gives to the processes of a launcher."""
    arguments = validated(name, num_processes=1 if name == "single" else 4)
    arguments.deepspeed_fields_from_accelerate_config = ""
    arguments.main_process_port = 0
    if arguments.use_deepspeed:
        return prepare_deepspeed_cmd_env(arguments)[1]
    if arguments.multi_gpu or arguments.use_fsdp:
        return prepare_multi_gpu_env(arguments)
    return prepare_simple_launcher_cmd_env(arguments)[1]


def test_the_launchers_are_there():
    assert sorted(FILES) == ["ddp", "fsdp2", "fsdp2-offload", "single", "zero2", "zero3", "zero3-offload"]


@pytest.mark.parametrize("name", FILES)
def test_accelerate_accepts_the_file(name):
    assert load_config_from_file(str(FILES[name])).to_dict()["compute_environment"] == "LOCAL_MACHINE"
    arguments = validated(name, num_processes=1 if name == "single" else 4)
    engine = (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed)
    assert engine == (name == "ddp", name.startswith("fsdp2"), name.startswith("zero"))
    assert (arguments.num_machines, arguments.machine_rank) == (1, 0)
    assert arguments.num_processes == (1 if name == "single" else 4)
    assert arguments.module is True
    assert (arguments.training_script, arguments.training_script_args) == ("simpo_trainer", ["train", "r.yaml"])


@pytest.mark.parametrize("name", FILES)
def test_a_file_brings_no_number_of_processes(name):
    """Of its own accord, accelerate asks for one where it matters."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FILES[name]), "script.py"])
    if name == "single":
        assert _validate_launch_command(arguments)[0].num_processes == 1
    else:
        with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
            _validate_launch_command(arguments)


@pytest.mark.parametrize("name", FILES)
def test_the_header_shows_the_command(name, machine):
    if name == "single":
        machine(1)
    header = "".join(re.findall(r"^#.*\n", FILES[name].read_text(), re.MULTILINE))
    assert f"accelerate launch {shlex.join(words(name, 'RECIPE'))}\n" in re.sub(r"\\\n# +", "", header)
    assert f"simpo train RECIPE --launcher {name}" in header
    for part in ("When:", "Launch:", "Several machines", "bf16"):
        assert part in header


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bf16", [True, False])
def test_the_recipe_decides_on_precision(name, bf16, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment(name)["ACCELERATE_MIXED_PRECISION"])
    config = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=bf16)
    assert config.mixed_precision == ("bf16" if bf16 else "no")


def test_fsdp2_as_the_processes_find_it():
    with patch_environment(**environment("fsdp2")):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.activation_checkpointing is False
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    # Under SHARDED_STATE_DICT the Trainer's save_model writes nothing.
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_as_the_processes_find_it(stage):
    with patch_environment(**environment(f"zero{stage}")):
        plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is (stage == 3)
    assert plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    for key in ("gradient_accumulation_steps", "gradient_clipping"):  # the recipe's, filled in by transformers
        assert plugin.deepspeed_config[key] == "auto"


def test_words_on_one_machine():
    assert words("ddp", "paper/x", "--beta", "3", num_processes=2, main_process_port=29501) == [
        *("--config_file", "recipes/accelerate/ddp.yaml", "--num_processes", "2", "--main_process_port", "29501"),
        *("--module", "simpo_trainer", "train", "paper/x", "--beta", "3"),
    ]


def test_words_outside_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words("ddp")[1] == str(FILES["ddp"])


def test_several_machines():
    machines = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29501}
    arguments = validated("fsdp2", **machines)
    assert arguments.num_processes == 16
    assert {name: getattr(arguments, name) for name in machines} == machines


@pytest.mark.parametrize(("accelerators", "count"), [(0, 1), (1, 1), (8, 8)])
def test_every_visible_accelerator_gets_a_process(machine, accelerators, count):
    machine(accelerators)
    assert validated("ddp").num_processes == count


@pytest.mark.parametrize(("visible", "chosen"), [(None, "0"), ("3,5", "3")])
def test_single_shows_its_process_one_accelerator(machine, monkeypatch, visible, chosen):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    arguments = validated("single")
    assert (arguments.num_processes, arguments.gpu_ids) == (1, chosen)
    machine(1)
    assert "--gpu_ids" not in words("single")


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\nmixed_precision: 'no'\n")
    assert words(str(file))[:4] == ["--config_file", str(file), "--num_processes", "4"]
    assert words(str(file), num_processes=2)[3] == "2"


@pytest.mark.parametrize(
    "text", ["distributed_type: MULTI_GPU\nnum_procs: 4\n", "- 1\n", "a: [", "distributed_type: X\n"]
)
def test_a_file_that_accelerate_cannot_read(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SimPOError, match=r"mine\.yaml is not a configuration of accelerate: (?s:.+)\nMake one"):
        words(str(file))


def test_an_unknown_launcher_lists_the_names_nearest_first():
    with pytest.raises(SimPOError, match="launcher zero not found. Launchers are zero[23], zero[23], .*single"):
        words("zero")
    with pytest.raises(SimPOError, match="Launchers are fsdp2, .*ddp"):
        words("FSDP")


MACHINES = {"num_machines": 2, "machine_rank": 0, "main_process_ip": "10.0.0.1"}


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("ddp", {"num_processes": 9}, "9 processes on this machine, but only 8 accelerators"),
        ("ddp", {**MACHINES, "num_processes": 18}, "9 processes on this machine, but only 8 accelerators"),
        ("single", {"num_processes": 2}, "single runs one process, but --num-processes is 2"),
        ("ddp", {**MACHINES, "num_processes": 5}, "5 do not divide among 2 machines"),
        ("ddp", {**MACHINES, "max_restarts": 1}, "--max-restarts needs machines .* Leave --machine-rank out"),
        ("ddp", {"max_restarts": 1}, "--max-restarts is for several machines"),
        ("ddp", {**MACHINES, "machine_rank": 2}, "--machine-rank is 2; of 2 machines it is 0 to 1"),
        ("ddp", {**MACHINES, "main_process_ip": None}, "all need --main-process-ip"),
        ("ddp", {"machine_rank": 1}, "--machine-rank is 1, but there is one machine"),
    ],
)
def test_numbers_that_do_not_fit(name, asked, message):
    with pytest.raises(SimPOError, match=message):
        words(name, **asked)


@pytest.mark.parametrize("name", SHARDED)
def test_nothing_to_split_the_model_over(machine, name):
    machine(0)
    with pytest.raises(SimPOError, match=f"{name} splits the model over accelerators, but none is visible"):
        words(name, num_processes=2)


def test_more_processes_than_cores_are_no_error_without_accelerators(machine):
    machine(0)
    assert validated("ddp", num_processes=2).num_processes == 2


def test_deepspeed_is_not_installed(machine):
    machine(8, deepspeed=False)
    with pytest.raises(SimPOError, match="zero2 needs DeepSpeed, which is not installed. Run `pip install deepspeed`"):
        words("zero2")
    assert words("fsdp2")


def test_a_launcher_inside_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SimPOError, match="itself started by a launcher"):
        words("ddp")


def test_the_shown_command_can_be_pasted(monkeypatch):
    asked = words("ddp", "my recipe.yaml", "--hub_token", "hf_a", "--hub-token=hf_b", "--run_name", "a b")
    monkeypatch.setattr(launcher.sys, "executable", "/env/bin/python")
    monkeypatch.setattr(launcher.shutil, "which", lambda name: "/env/bin/accelerate")
    line = shown(asked)
    assert line.startswith("accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 8 ")
    tail = "train 'my recipe.yaml' --hub_token \"$HF_TOKEN\" --hub-token=\"$HF_TOKEN\" --run_name 'a b'"
    assert line.endswith(tail)
    monkeypatch.setattr(launcher.shutil, "which", lambda name: "/other/bin/accelerate")
    assert shown(asked).startswith("/env/bin/python -m accelerate.commands.launch --config_file")
