"""Pushes with the real client to a small Hub on this machine: what lands there, what never does, what can go wrong."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig
from safetensors.torch import load, load_file
from transformers.utils import PushInProgress

from hub_server import TOKEN, HubServer, open_to
from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOConfig, SimPOError, SimPOTrainer
from simpo_trainer.publish.hub import PUSHED, check_credentials, push_later, stage_files
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run.one_run import run

pytestmark = pytest.mark.filterwarnings("ignore:Cannot enable progress bars")

FINAL = {
    "README.md",
    "all_results.json",
    "config.json",
    "eval_results.json",
    "generation_config.json",
    "model.safetensors",
    "run_manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_results.json",
    "trainer_state.json",
    "training_curves.png",
}


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        open_to(monkeypatch, server.url)
        yield server


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of a user whose name must not be told, with a model and data."""
    folder = tmp_path / "adalovelace"
    (folder / "pairs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LOGNAME", "adalovelace")
    tiny_model().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    for seed, split in enumerate(("train", "test")):
        rows = [as_text(pair) for pair in random_pairs(16, seed)]
        (folder / "pairs" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe_file(home, **settings):
    settings = {
        "model_name_or_path": f"{home}/base",
        "dataset_name": f"{home}/pairs",
        "output_dir": f"{home}/runs/out",
        "push_to_hub": True,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "max_length": 64,
        "max_prompt_length": 32,
    } | settings
    (home / "mine.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items()))
    return home / "mine.yaml"


def push(home, **settings):
    return run(load_recipe(recipe_file(home, **settings)))


def assert_nothing_private(repo, home):
    for name, content in repo.files.items():
        for private in (str(home), home.name, TOKEN):
            assert private.encode() not in content, f"{private} in {name}"


def names(repo):
    return {name for name in repo.files if "/" not in name}


def folders(repo):
    return {name.split("/")[0] for name in repo.files if "/" in name}


# --- Credentials ------------------------------------------------------------------------------------------------------


def settings(tmp_path, **options):
    return SimPOConfig(output_dir=str(tmp_path / "out"), push_to_hub=True, use_cpu=True, **options)


def test_without_a_push_nobody_asks(tmp_path, hub):
    check_credentials(SimPOConfig(output_dir=str(tmp_path), use_cpu=True))
    assert hub.calls == []


def test_a_good_token_passes(tmp_path, hub, monkeypatch):
    check_credentials(settings(tmp_path))
    monkeypatch.delenv("HF_TOKEN")
    check_credentials(settings(tmp_path, hub_token=TOKEN))
    assert hub.calls == ["GET /api/whoami-v2"] * 2


def test_no_token(tmp_path, monkeypatch):
    open_to(monkeypatch, "http://127.0.0.1:1", token=None)
    with pytest.raises(
        SimPOError, match="no token of the Hub here. Run `hf auth login` or set .* HF_TOKEN .* push_to_hub: false"
    ):
        check_credentials(settings(tmp_path))


def test_a_wrong_token(tmp_path, hub):
    with pytest.raises(
        SimPOError, match="does not accept the token: Invalid user token.* Run `hf auth login`"
    ) as caught:
        check_credentials(settings(tmp_path, hub_token="hf_wrong"))
    assert hub.url in str(caught.value) and "hf_wrong" not in str(caught.value)


def test_a_token_that_may_only_read(tmp_path, hub):
    hub.role = "read"
    with pytest.raises(SimPOError, match="the token of the Hub may only read. Make one with write access"):
        check_credentials(settings(tmp_path))


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        open_to(monkeypatch, url)
        with pytest.raises(SimPOError, match=rf"the Hub \({url}\) cannot be reached: .* Check the network"):
            check_credentials(settings(tmp_path))


def test_offline_mode(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SimPOError, match="HF_HUB_OFFLINE=1 forbids the Hub. Unset it"):
        check_credentials(settings(tmp_path))


def test_names_that_the_hub_does_not_take(tmp_path, hub):
    with pytest.raises(
        SimPOError, match="hub_model_id is 'a/b/c', not a name for the Hub: .* Set hub_model_id: user/name"
    ):
        check_credentials(settings(tmp_path, hub_model_id="a/b/c"))
    args = SimPOConfig(output_dir=str(tmp_path / "my run"), push_to_hub=True, use_cpu=True)
    with pytest.raises(SimPOError, match="output_dir, which names the repository, is 'my run', not a name for the Hub"):
        check_credentials(args)
    assert hub.calls == []


def test_a_repository_of_others(tmp_path, hub):
    with pytest.raises(SimPOError, match="The repository other/mine cannot be made on the Hub: .* Set hub_model_id"):
        make_trainer(tmp_path / "out", random_pairs(8), push_to_hub=True, hub_model_id="other/mine")


# --- Pushes -----------------------------------------------------------------------------------------------------------


def test_only_files_that_are_known_to_be_public_are_pushed(tmp_path):
    source, target = tmp_path / "out", tmp_path / "staged"
    stay = ["samples.jsonl", "report.html", "notes.txt", "train.py", "checkpoint-2/model.safetensors", "_x/config.json"]
    stay += ["training_args.bin", "events.out.tfevents.1.host", "seal.json", "log.jsonl", "runs/a/README.md"]
    go = [*FINAL, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.jinja"]
    go += ["vocab.json", "tokenizer.model", "modeling_mine.py", "second/adapter_model.safetensors"]
    for name in (*stay, *go):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    stage_files(source, target, {}, only=PUSHED)
    assert {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()} == set(go)


@pytest.mark.slow
def test_a_run_from_the_command_line(home, tmp_path):
    """As a user does it: a fresh process that finds the Hub and the token in its environment."""
    with HubServer() as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        program = "from simpo_trainer.cli import main; main()"
        subprocess.run(
            [sys.executable, "-c", program, "train", str(recipe_file(home, hub_private_repo=True))],
            env={**os.environ, **environment},
            check=True,
        )
    assert list(hub.repos) == ["tester/out"]
    repo = hub.repos["tester/out"]
    assert repo.visibility == "private"
    assert names(repo) == FINAL and not folders(repo)
    assert_nothing_private(repo, home)
    assert repo.files["model.safetensors"] == (home / "runs/out/model.safetensors").read_bytes()
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.tags == ["simpo", "trl", "preference-optimization"]
    assert 'model="tester/out"' in card.text
    manifest = json.loads(repo.files["run_manifest.json"])
    assert manifest["status"] == "finished" and manifest["recipe"]["settings"]["hub_private_repo"] is True
    assert repo.files["training_curves.png"].startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "messages", "checkpoints"),
    [
        ("end", [], set()),
        ("every_save", ["step 2", "step 4"], set()),
        ("checkpoint", ["step 2", "step 4"], {"last-checkpoint"}),
        ("all_checkpoints", ["step 2", "step 4"], {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_strategies(home, hub, strategy, messages, checkpoints):
    push(home, hub_strategy=strategy, hub_model_id="tester/mine", hub_always_push=True)
    repo = hub.repos["tester/mine"]
    expected = [f"Training in progress, {step}" for step in messages] + ["End of training"]
    assert [commit.message for commit in repo.commits] == expected
    assert repo.visibility is None
    assert names(repo) == FINAL and folders(repo) == checkpoints
    for folder in checkpoints:
        assert {f"{folder}/{name}" for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json")} <= set(
            repo.files
        )
        assert f"{folder}/training_args.bin" not in repo.files
    assert_nothing_private(repo, home)
    assert [file.name for file in (home / "runs/out").glob("_push_*")] == []
    if messages:
        assert {"model.safetensors", "README.md", "run_manifest.json", "tokenizer.json"} <= set(repo.commits[0].files)


@pytest.mark.slow
def test_the_last_checkpoint_of_the_hub_goes_on_as_the_local_one(home, hub):
    push(home, hub_strategy="checkpoint", hub_always_push=True)
    state = json.loads(hub.repos["tester/out"].files["last-checkpoint/trainer_state.json"])
    assert state["global_step"] == 4
    local = load_file(home / "runs/out/checkpoint-4/model.safetensors")
    pushed = load(hub.repos["tester/out"].files["last-checkpoint/model.safetensors"])
    assert pushed.keys() == local.keys() and all(pushed[name].equal(local[name]) for name in local)


@pytest.mark.slow
def test_an_adapter_of_a_local_base(home, hub, caplog):
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    push(
        home,
        use_peft=True,
        lora_target_modules="all-linear",
        hub_strategy="all_checkpoints",
        hub_always_push=True,
        **best,
    )
    repo = hub.repos["tester/out"]
    assert_nothing_private(repo, home)
    # Here the paths stay, so that the adapter can be loaded and the run resumed.
    local = json.loads((home / "runs/out/adapter_config.json").read_text())
    assert local["base_model_name_or_path"] == f"{home}/base"
    assert json.loads(repo.files["adapter_config.json"]) == local | {"base_model_name_or_path": "local folder 'base'"}
    assert str(home) in (home / "runs/out/checkpoint-4/trainer_state.json").read_text()
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.library_name == "peft" and card.data.base_model is None
    assert {"checkpoint-2", "checkpoint-4"} == folders(repo)
    assert [name for name in repo.files if name.endswith("README.md")] == ["README.md"]  # none of peft's
    assert f"The adapter's base {home}/base is a folder of this machine" in caplog.text


def test_the_command_that_pushes_later_leaves_what_may_hold_rows(tmp_path):
    words = shlex.split(push_later("a/b", tmp_path))
    given = {
        option: [after for word, after in zip(words, words[1:], strict=False) if word == option]
        for option in ("--include", "--exclude")
    }
    names = ["model.safetensors", "config.json", "run_manifest.json", "README.md"]
    own = ["pair_scores.json", "samples.jsonl", "log.jsonl", "report.html", "seal.json", "training_args.bin"]
    found = filter_repo_objects([*names, *own], allow_patterns=given["--include"], ignore_patterns=given["--exclude"])
    assert list(found) == names


@pytest.mark.slow
def test_a_hub_that_fails_costs_the_push_alone(home, hub, caplog):
    hub.refuse_commits = True
    with pytest.raises(SimPOError) as caught:
        push(home)
    message = str(caught.value)
    assert f"The training is done and the model is saved in {home}/runs/out" in message
    assert "out of order" in message or "500" in message
    assert f"hf upload tester/out {home}/runs/out --include" in message
    assert (home / "runs/out/model.safetensors").is_file() and (home / "runs/out/README.md").is_file()
    assert json.loads((home / "runs/out/all_results.json").read_text())["eval_loss"] > 0
    assert "A push during training failed, and the training goes on" in caplog.text
    assert list((home / "runs/out").glob("_push_*")) == []


@pytest.mark.slow
def test_a_hub_that_is_gone_at_the_end(home, hub):
    class LastTrainer(SimPOTrainer):
        def evaluate(self):
            hub.close()
            return super().evaluate()

    with pytest.raises(
        SimPOError, match="The training is done and the model is saved .* Nothing is lost. Push it when"
    ):
        run(load_recipe(recipe_file(home, hub_strategy="end")), LastTrainer)
    assert json.loads((home / "runs/out/run_manifest.json").read_text())["results"]["metrics"]["eval_loss"] > 0


@pytest.mark.slow
def test_a_push_from_python(home, hub, caplog):
    """`push_to_hub()` as with any Trainer, on a trainer whose arguments did not ask for it."""
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(home / "python", random_pairs(8), max_steps=1, arguments={"peft_config": lora})
    trainer.train()
    for name in ("notes.txt", "own_results.json"):
        (home / "python" / name).write_text(f"kept in {home}/python by {TOKEN}")
    future = trainer.push_to_hub(
        "Mine", blocking=False, token=TOKEN, private=True, tags=["more"], dataset_name="org/pairs"
    )
    future.result(timeout=60)
    repo = hub.repos["tester/python"]
    assert repo.visibility == "private" and [commit.message for commit in repo.commits] == ["Mine"]
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.tags[-1] == "more" and card.data.datasets == ["org/pairs"]
    assert repo.files["own_results.json"].decode() == "kept in local folder 'python' by <token>"
    assert not {"training_args.bin", "notes.txt", "log.jsonl"} & repo.files.keys()
    assert_nothing_private(repo, home)


@pytest.mark.slow
def test_a_report_is_pushed_if_that_is_asked_for_and_without_answers(home, hub):
    push(home, push_report=True, sample_prompts=2)
    repo = hub.repos["tester/out"]
    assert names(repo) == {*FINAL, "report.html"}
    public, own = repo.files["report.html"].decode(), (home / "runs/out/report.html").read_text()
    assert "Answers while it trained" in own and "Answers while it trained" not in public
    assert "Curves" in public and "samples.jsonl" not in repo.files
    assert_nothing_private(repo, home)


@pytest.mark.slow
def test_the_last_push_waits_for_the_one_before(tmp_path, hub):
    """Else an older state might land on top of the newer one."""
    trainer = make_trainer(tmp_path / "out", random_pairs(8), push_to_hub=True)
    commits = hub.repos["tester/out"].commits

    def earlier():
        time.sleep(0.5)
        return len(commits)

    job = trainer._hub.run_as_future(earlier)
    trainer.push_in_progress = PushInProgress([job])
    trainer.push_to_hub()
    assert job.result() == 0 and len(commits) == 1


def test_other_processes_push_nothing(tmp_path, hub, monkeypatch):
    trainer = make_trainer(tmp_path / "out", random_pairs(8))
    trainer.hub_model_id = "tester/out"
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trainer.push_to_hub() is None
    trainer._push_from_checkpoint(str(tmp_path))
    trainer.create_model_card()
    assert hub.calls == [] and not (tmp_path / "out" / "README.md").exists()


@pytest.mark.slow
def test_tensorboards_files_bear_the_name_of_the_host_and_stay_here(home, hub):
    folder = home / "runs/out/runs/Nov20_host"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host.2.0").write_text("x")
    push(home, hub_model_id="tester/mine")
    assert not [name for name in hub.repos["tester/mine"].files if "host" in name]
