"""The scripts for clusters (recipes/launch/, docs/interruptions.md): run with stand-ins for the scheduler, or read."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from engines import environment, free_port
from models import random_pairs
from runs import write_run
from simpo_trainer.cli import main
from simpo_trainer.run import supervision

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "recipes" / "launch"
PAGE = (ROOT / "docs" / "interruptions.md").read_text()
_RECIPE = """
model_name_or_path: model
dataset_name: pairs.jsonl
output_dir: out
num_train_epochs: 400
per_device_train_batch_size: 4
learning_rate: 1e-3
save_strategy: "no"
use_cpu: true
report_to: none
"""


def block(language: str, part: str) -> str:
    """The block of code in the page that has `part`."""
    found = [each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if part in each]
    assert len(found) == 1
    return found[0]


# In place of Slurm's: it starts the tasks of all "nodes" here, and gives the highest status.
_SRUN = """
shift 2
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_NODEID=$node "$@" > log-$node 2>&1 &
    echo $! > step-$node.pid
done
worst=0
for pid in $(cat step-*.pid); do
    wait $pid; status=$?
    [ $status -gt $worst ] && worst=$status
done
exit $worst
"""
_SCONTROL = """
if [ "$1" = show ]; then printf '127.0.0.1\\n127.0.0.1\\n'; else echo "$@" >> requeued; fi
"""


def slurm(folder: Path, nodes: int, **commands: str) -> dict[str, str]:
    """The environment of a job's script on so many nodes, with stand-ins for commands."""
    for name, line in {"scontrol": _SCONTROL, **commands}.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    return environment(
        PATH=f"{folder}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(free_port()),
        SLURM_JOB_NUM_NODES=str(nodes),
        SLURM_JOB_NODELIST="node[0-1]",
        SLURM_GPUS_ON_NODE="1",
        SLURM_SUBMIT_DIR=str(folder),
        LAUNCHER="ddp",
    )


@pytest.mark.slow
def test_the_slurm_script_puts_a_run_back_that_was_stopped_in_time(tmp_path):
    """The nodes are processes of this machine."""
    nodes = 2
    write_run(tmp_path, _RECIPE, random_pairs(8))
    variables = slurm(tmp_path, nodes, srun=_SRUN, simpo=f'exec {sys.executable} -m simpo_trainer "$@"')
    words = ["bash", str(LAUNCH / "slurm.sh"), "recipe.yaml", "--seed", "7"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(words, cwd=tmp_path, env=variables, stdout=log, stderr=log, start_new_session=True)
    first = tmp_path / "log-0"
    try:
        end = time.monotonic() + 90
        while not (first.exists() and "step 1/" in first.read_text()):
            assert time.monotonic() < end and job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        for node in range(nodes):
            os.kill(int((tmp_path / f"step-{node}.pid").read_text()), signal.SIGUSR1)
        assert job.wait(60) == 138, first.read_text()[-2000:]
    finally:
        with suppress(ProcessLookupError):  # nothing of its session is left
            os.killpg(job.pid, signal.SIGKILL)
        job.wait(20)
    assert (tmp_path / "requeued").read_text() == f"requeue {variables['SLURM_JOB_ID']}\n"
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    assert len(list(checkpoint.glob("rng_state*"))) == nodes  # each process has left its part


def test_a_failed_run_is_not_put_back(tmp_path):
    variables = slurm(tmp_path, 1, srun="exit 1")
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sh"), "r.yaml"], cwd=tmp_path, env=variables, timeout=20)
    assert done.returncode == 1 and not (tmp_path / "requeued").exists()


def kubernetes() -> tuple[dict, dict]:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job


def test_the_kubernetes_job_is_a_job():
    _, job = kubernetes()
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a policy for failures of pods needs it
    [container] = pod["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    codes = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes == [[128 + signal.SIGINT, 128 + signal.SIGTERM]]


def test_the_pods_find_each_other():
    """By a Service without an address, which names pod 0 after the job, its number and the Service."""
    service, job = kubernetes()
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    spec, name = job["spec"], service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert spec["template"]["spec"]["subdomain"] == name
    words = spec["template"]["spec"]["containers"][0]["command"]
    assert words[words.index("--main-process-ip") + 1] == f"{job['metadata']['name']}-0.{name}"


@pytest.mark.parametrize(("machines", "index"), [(1, 0), (2, 0), (2, 1)])
def test_the_command_of_a_pod_launches(machines, index, tmp_path, monkeypatch):
    """With the variables that Kubernetes puts into a command; no process is started."""
    [container] = kubernetes()[1]["spec"]["template"]["spec"]["containers"]
    values = {each["name"]: each.get("value", str(index)) for each in container["env"]}
    values |= {"MACHINES": str(machines), "PROCESSES": str(8 * machines)}
    words = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in container["command"]]
    words = ["127.0.0.1" if word == "simpo-0.simpo" else word for word in words]
    launched = []
    monkeypatch.setattr(supervision, "supervise", lambda words, options, variables: launched.append(words) or 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, _RECIPE, random_pairs(2))
    (tmp_path / "recipe.yaml").rename(tmp_path / "my_run.yaml")
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(launched[0]))
    assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (machines, index, 8 * machines)
    assert arguments.use_fsdp and arguments.main_process_port == 29500


def test_the_script_that_waits_for_notice_is_bash(tmp_path):
    (tmp_path / "notice.sh").write_text(block("bash", "spot/instance-action"))
    assert subprocess.run(["bash", "-n", "notice.sh"], cwd=tmp_path, timeout=20).returncode == 0
