"""The scripts of docs/interruptions.md for clusters: run with stand-ins for the scheduler, or at least read."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from models import random_pairs
from runs import write_run

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_the_slurm_script_puts_a_run_back_that_was_stopped_in_time(tmp_path):
    """`srun` gets the signal as a job step does, and gives the status of the command."""
    write_run(tmp_path, _RECIPE, random_pairs(8))
    script = block("bash", "#SBATCH").replace("my_run.yaml --launcher fsdp2 --num-processes 8", "recipe.yaml")
    (tmp_path / "job.sh").write_text(script)
    commands = {
        "srun": f'echo $$ > step.pid\nshift\nexec {sys.executable} -m simpo_trainer "$@"',
        "scontrol": 'echo "$@" >> requeued',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "77",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 90
        while "step 1/" not in (tmp_path / "log").read_text() and time.monotonic() < end and job.poll() is None:
            time.sleep(0.05)
        os.kill(int((tmp_path / "step.pid").read_text()), signal.SIGUSR1)
        assert job.wait(60) == 138, (tmp_path / "log").read_text()[-2000:]
    finally:
        job.kill()
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_a_failed_run_is_not_put_back(tmp_path):
    for name, line in {"srun": "exit 1", "scontrol": "touch requeued"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    (tmp_path / "job.sh").write_text(block("bash", "#SBATCH"))
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, timeout=20)
    assert done.returncode == 1 and not (tmp_path / "requeued").exists()


def test_the_kubernetes_job_is_a_job():
    job = yaml.safe_load(block("yaml", "kind: Job"))
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a policy for failures of pods needs it
    [container] = pod["containers"]
    assert container["command"][:2] == ["simpo", "train"] and all(
        isinstance(each, str) for each in container["command"]
    )
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    codes = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes == [[128 + signal.SIGINT, 128 + signal.SIGTERM]]


def test_the_script_that_waits_for_notice_is_bash(tmp_path):
    (tmp_path / "notice.sh").write_text(block("bash", "spot/instance-action"))
    assert subprocess.run(["bash", "-n", "notice.sh"], cwd=tmp_path, timeout=20).returncode == 0
