"""What a checkpoint must hold, and whose it must be, before a run goes on from it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM

from models import random_pairs, tiny_architecture, tiny_model
from runs import assert_same_weights, make_trainer, weights_of
from simpo_trainer.errors import SimPOError
from simpo_trainer.record.folders import checkpoints, step_of
from simpo_trainer.record.seal import SEAL, begin_checkpoint, is_open, read_seal, seal_checkpoint
from simpo_trainer.train.checkpoints import find_checkpoint, rotate_checkpoints

ROWS = random_pairs(12)
SETTINGS = {
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}
WHOLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors")


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def lora(*targets: str, rank: int = 2) -> dict:
    return {"peft_config": LoraConfig(target_modules=list(targets), r=rank, task_type="CAUSAL_LM")}


# ---- Finding one ----


def test_checkpoints_come_by_step_and_torn_ones_do_not_count(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "_earlier-checkpoint-11", "checkpoint-x"):
        write(tmp_path / name, *WHOLE)
    write(tmp_path / "checkpoint-12", "model.safetensors")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, None) is find_checkpoint(tmp_path, False) is None


def test_a_trailing_slash_changes_nothing(tmp_path):
    write(tmp_path / "checkpoint-2", *WHOLE)
    found = find_checkpoint(tmp_path, f"{tmp_path}/checkpoint-2/")
    assert found == tmp_path / "checkpoint-2"
    assert step_of(found) == 2


@pytest.mark.parametrize(
    "names",
    [
        WHOLE,
        (*WHOLE[:3], "adapter_model.safetensors"),
        (*WHOLE[:3], "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("trainer_state.json", "scheduler.pt", "optimizer_0/shard", "pytorch_model_fsdp_0/shard"),
        ("trainer_state.json", "scheduler.pt", "optimizer.bin", "pytorch_model_fsdp.bin"),
        ("trainer_state.json", "global_step2/states"),
    ],
    ids=["whole", "adapter", "in parts", "FSDP sharded", "FSDP full", "DeepSpeed"],
)
def test_complete_checkpoints(tmp_path, names):
    folder = write(tmp_path / "checkpoint-2", *names)
    assert find_checkpoint(tmp_path, str(folder)) == folder


@pytest.mark.parametrize("wanted", [True, "checkpoint-2"])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("optimizer.pt", "holds no optimiser state .*Resume from a full checkpoint"),
        ("scheduler.pt", "holds no scheduler state"),
        ("model.safetensors", "holds no weights"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path, wanted, missing, message):
    """transformers loads neither of optimiser and scheduler where one is missing, without a word."""
    folder = write(tmp_path / "checkpoint-2", *(name for name in WHOLE if name != missing))
    with pytest.raises(SimPOError, match=message):
        find_checkpoint(tmp_path, wanted if wanted is True else str(folder))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(
        SimPOError, match="is not a checkpoint-N folder with a trainer_state.json. There is no complete"
    ):
        find_checkpoint(tmp_path, str(tmp_path))


def test_a_checkpoint_that_was_not_saved_to_the_end_is_refused_where_it_is_named(tmp_path):
    folder = write(tmp_path / "checkpoint-2", *WHOLE)
    seal_checkpoint(folder, {"step": 2})
    (folder / SEAL).write_text((folder / SEAL).read_text().replace('"step": 2', '"step": 3'))
    with pytest.raises(SimPOError, match="checkpoint-2 was not saved to the end, or its seal.json was changed"):
        find_checkpoint(tmp_path, str(folder))


# ---- Training on from one ----


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """An uninterrupted run of six steps with checkpoints after 2, 4 and 6."""
    trainer = make_trainer(tmp_path_factory.mktemp("earlier"), ROWS, **SETTINGS)
    trainer.train()
    return trainer


def resumed(folder: Path, checkpoint: str | bool, *, model=None, arguments=None, **changed):
    trainer = make_trainer(
        folder, ROWS, model=model or tiny_model(seed=5), arguments=arguments, **{**SETTINGS, **changed}
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def unsealed(checkpoint: Path, folder: Path) -> Path:
    """A copy without a seal, as an earlier version of this package made it."""
    copy = shutil.copytree(checkpoint, folder / checkpoint.name)
    (copy / SEAL).unlink()
    return copy


@pytest.mark.slow
def test_true_means_the_newest_complete_one_in_python_too(tmp_path, earlier):
    shutil.copytree(Path(earlier.args.output_dir) / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.copytree(Path(earlier.args.output_dir) / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    assert_same_weights(weights_of(resumed(tmp_path, True)), weights_of(earlier), tolerance=1e-6)


@pytest.mark.slow
def test_a_run_seals_its_checkpoints_and_goes_on_from_the_newest_that_is_whole(tmp_path, earlier, caplog):
    """Of the last a file is changed, the one before is torn, the third is whole."""
    there = Path(earlier.args.output_dir)
    assert [is_open(folder) for folder in checkpoints(there)] == [False] * len(checkpoints(there))
    assert (read_seal(there / "checkpoint-4")["step"], read_seal(there / "checkpoint-4")["processes"]) == (4, 1)
    for step in (3, 4, 6):
        shutil.copytree(there / "checkpoint-4", tmp_path / f"checkpoint-{step}")
    optimizer = tmp_path / "checkpoint-6" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    begin_checkpoint(tmp_path / "checkpoint-4")
    assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-3"
    assert f"{tmp_path}/checkpoint-6 is not whole (optimizer.pt was changed" in caplog.text
    assert f"{tmp_path}/checkpoint-4 was not saved to the end: the run goes on from checkpoint-3" in caplog.text
    with pytest.raises(
        SimPOError, match="checkpoint-6 is not whole: optimizer.pt was changed .*Others are: .*checkpoint-3"
    ):
        find_checkpoint(tmp_path, tmp_path / "checkpoint-6")
    shutil.rmtree(tmp_path / "checkpoint-3")
    with pytest.raises(
        SimPOError, match="no complete checkpoint in .*checkpoint-4 was not saved to the end; .*changed"
    ):
        find_checkpoint(tmp_path, True)


def test_a_checkpoint_of_an_earlier_version_is_taken_and_told(tmp_path, caplog):
    folder = write(tmp_path / "checkpoint-5", *WHOLE)
    assert find_checkpoint(tmp_path, True) == folder
    assert "checkpoint-5 has no seal.json, as checkpoints of earlier versions" in caplog.text
    begin_checkpoint(folder)
    write(folder, *WHOLE)
    seal_checkpoint(folder, {})
    caplog.clear()
    assert find_checkpoint(tmp_path, True) == folder and not caplog.text


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [9, 10, 20, 100]),
        (0, None, [9, 10, 20, 100]),
        (2, None, [20, 100]),
        (1, None, [100]),
        (2, 9, [9, 100]),
        (1, 9, [9, 100]),
        (3, 100, [10, 20, 100]),
        (9, None, [9, 10, 20, 100]),
    ],
)
def test_rotation_goes_by_step_whatever_the_times_say(tmp_path, limit, best, left):
    """Folders without an end go in any case; one of another name stays."""
    for age, step in enumerate([100, 9, 20, 10]):
        folder = write(tmp_path / f"checkpoint-{step}", *WHOLE)
        os.utime(folder, (1e9 + 100 * age, 1e9 + 100 * age))
    begin_checkpoint(tmp_path / "checkpoint-15")
    write(tmp_path / "_earlier-checkpoint-1", *WHOLE)
    rotate_checkpoints(tmp_path, limit, str(tmp_path / f"checkpoint-{best}") if best else None)
    assert [step_of(folder) for folder in checkpoints(tmp_path)] == left
    assert {path.name for path in tmp_path.iterdir()} == {"_earlier-checkpoint-1", *(f"checkpoint-{n}" for n in left)}


def test_older_checkpoints_are_there_until_the_new_one_is_sealed(tmp_path, monkeypatch):
    """The adapter to transformers' own rotation: it must not have removed anything when the seal is written."""
    seen = []

    def seal(folder, facts):
        seen.append(sorted(path.name for path in folder.parent.glob("checkpoint-*")))
        seal_checkpoint(folder, facts)

    monkeypatch.setattr("simpo_trainer.train.full_disk.seal_checkpoint", seal)
    settings = {**SETTINGS, "max_steps": 3, "save_steps": 1, "save_total_limit": 1}
    make_trainer(tmp_path, ROWS, **settings).train()
    assert seen == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-3"]


def test_a_checkpoint_without_its_schedule_is_refused_in_python_too(tmp_path, earlier):
    shutil.copytree(Path(earlier.args.output_dir) / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "scheduler.pt").unlink()
    (tmp_path / "checkpoint-4" / SEAL).unlink()  # as an earlier version left it
    for wanted in (True, f"{tmp_path}/checkpoint-4"):
        with pytest.raises(SimPOError, match="holds no scheduler state"):
            resumed(tmp_path, wanted)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 2e-3}, "learning_rate is 0.002 and was 0.001"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1 and was 0.0"),
        ({"adam_beta2": 0.95}, r"\(adam_beta1, adam_beta2\) is \(0.9, 0.95\) and was \(0.9, 0.999\)"),
        ({"optim": "sgd"}, "momentum is 0 and was None"),
    ],
)
def test_settings_that_a_resume_would_not_take_are_refused(tmp_path, earlier, changed, message):
    """The optimiser's state brings its own, while the record would tell of the new ones; a seal would tell of both."""
    checkpoint = unsealed(Path(earlier.args.output_dir) / "checkpoint-4", tmp_path)
    with pytest.raises(SimPOError, match=message):
        resumed(tmp_path, str(checkpoint), **changed)


def test_a_model_of_another_shape_is_refused(tmp_path, earlier):
    for other, message in [
        (tiny_model(num_hidden_layers=3), "9 of the 30 weights .* are not in"),
        (tiny_model(intermediate_size=64), "do not fit the model that is to go on training"),
    ]:
        with pytest.raises(SimPOError, match=message):
            resumed(tmp_path, f"{earlier.args.output_dir}/checkpoint-4", model=other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lora("k_proj"), "k_proj.lora_A.weight is not in the checkpoint; .*q_proj.lora_A.weight is not in this run's"),
        (lora("q_proj", "v_proj"), "v_proj.lora_A.weight is not in the checkpoint"),
        (lora("q_proj", rank=4), r"is \(2, 32\) there and \(4, 32\) here"),
    ],
    ids=["other targets", "more targets", "another rank"],
)
def test_another_adapter_is_refused(tmp_path, other, message):
    """The optimiser's state was taken for other weights, and fused AdamW ended in a segmentation fault."""
    make_trainer(tmp_path, ROWS, arguments=lora("q_proj"), **SETTINGS).train()
    with pytest.raises(SimPOError, match="adapter: (r was 2 and is 4|target_modules was ..q_proj.. and is .*)\\. Set"):
        resumed(tmp_path, True, arguments=other, model=tiny_model())
    # Where changes are allowed, and where nothing was known of the adapter, its weights tell.
    with pytest.raises(SimPOError, match=message):
        resumed(tmp_path, True, arguments=other, model=tiny_model(), allow_changes=True)
    (tmp_path / "checkpoint-6" / SEAL).unlink()
    with pytest.raises(SimPOError, match=message):
        resumed(tmp_path, True, arguments=other, model=tiny_model())


EMBEDDING_AND_HEAD = {"target_modules": ["embedding", "head"]}  # refused where they are one weight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("llama", EMBEDDING_AND_HEAD),
        ("qwen3-untied", EMBEDDING_AND_HEAD),
        *(
            (name, adapter)
            for name in ("llama", "qwen3-tied", "gpt2")
            for adapter in (
                {"target_modules": "all-linear"},
                {"target_modules": "all-linear", "modules_to_save": ["embedding"]},
                {"target_modules": "all-linear", "modules_to_save": ["embedding", "head"]},
                {"target_modules": "all-linear", "modules_to_save": ["embedding"], "ensure_weight_tying": True},
                {"target_modules": "all-linear", "use_dora": True},
            )
        ),
    ],
)
def test_the_same_adapter_goes_on(tmp_path, name, adapter):
    """peft writes the embedding and the head beside an adapter that changes them."""
    names = {"gpt2": {"embedding": "wte", "head": "lm_head"}}.get(
        name, {"embedding": "embed_tokens", "head": "lm_head"}
    )
    values = {
        key: [names.get(each, each) for each in value] if isinstance(value, list) else value
        for key, value in adapter.items()
    }
    settings = {**SETTINGS, "num_train_epochs": 1, "max_steps": 3}

    def arguments():
        return {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM", **values)}

    whole = make_trainer(tmp_path / "whole", ROWS, model=tiny_architecture(name), arguments=arguments(), **settings)
    whole.train()
    again = make_trainer(tmp_path / "again", ROWS, model=tiny_architecture(name), arguments=arguments(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(weights_of(again), weights_of(whole), tolerance=1e-6)


@pytest.mark.slow
def test_an_adapter_that_trains_the_embeddings_of_added_tokens_goes_on(tmp_path):
    """peft then writes them under the names of its wrapper too."""

    def trainer(folder):
        model = tiny_model()
        model.resize_token_embeddings(101)
        config = LoraConfig(
            r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
        )
        settings = {**SETTINGS, "num_train_epochs": 1, "max_steps": 3}
        return make_trainer(folder, ROWS, model=model, arguments={"peft_config": config}, **settings)

    torch.manual_seed(0)
    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    found, expected = ({k: v for k, v in weights_of(t).items() if "modules_to_save" in k} for t in (again, whole))
    assert len(found) == 2
    assert_same_weights(found, expected, tolerance=1e-6)


class Flavoured(LlamaForCausalLM):
    """A model of one's own that cannot be made from its configuration alone."""

    def __init__(self, config, flavour):
        super().__init__(config)
        self.flavour = flavour


@pytest.mark.slow
def test_a_model_of_ones_own_goes_on(tmp_path):
    """Loaded as it is: its class may ask for more than a configuration, its weights may differ in dtype."""

    def model():
        made = Flavoured(tiny_model().config, "mild")
        made.load_state_dict(tiny_model().state_dict())
        made.model.embed_tokens.bfloat16().requires_grad_(False)
        return made

    settings = {**SETTINGS, "num_train_epochs": 1, "max_steps": 3}
    whole = make_trainer(tmp_path / "whole", ROWS, model=model(), **settings)
    whole.train()
    again = make_trainer(tmp_path / "again", ROWS, model=model(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(weights_of(again), weights_of(whole), tolerance=1e-6)


def test_optimiser_state_of_other_weights_is_refused(tmp_path, earlier):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(Path(earlier.args.output_dir) / "checkpoint-4", folder)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"] = torch.zeros(3)
    (folder / SEAL).unlink()
    torch.save(state, folder / "optimizer.pt")
    with pytest.raises(SimPOError, match=r"exp_avg of shape \(3,\) for a weight of shape \(97, 32\)"):
        resumed(tmp_path, True)
    state["param_groups"] = state["param_groups"][:1]
    torch.save(state, folder / "optimizer.pt")
    with pytest.raises(SimPOError, match="this run's 21 "):
        resumed(tmp_path, True)


# ---- A mixture of experts, whose experts are saved one by one ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_a_mixture_of_experts_goes_on_with_the_experts_that_were_saved(tmp_path, name):
    """transformers reads the file's names as the model's, and went on with the untrained experts."""
    settings = {**SETTINGS, "num_train_epochs": 1, "max_steps": 3}
    whole = make_trainer(tmp_path / "whole", ROWS, model=tiny_architecture(name), **settings)
    whole.train()
    again = make_trainer(tmp_path / "again", ROWS, model=tiny_architecture(name), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(weights_of(again), weights_of(whole), tolerance=1e-6)


@pytest.mark.slow
def test_the_best_mixture_of_experts_is_the_one_that_was_saved(tmp_path):
    settings = {"save_steps": 1, "eval_steps": 1, "eval_strategy": "steps", "max_steps": 3, "learning_rate": 1e-3}
    trainer = make_trainer(
        tmp_path,
        ROWS,
        model=tiny_architecture("mixtral"),
        eval_dataset=make_trainer(tmp_path / "other", random_pairs(4)).train_dataset,
        **{**SETTINGS, **settings},
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so that this is not the last step
        lr_scheduler_type="constant",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert trainer.state.best_global_step == 1
    saved = type(trainer.model).from_pretrained(best, dtype=torch.float32)
    assert_same_weights(weights_of(trainer), dict(saved.named_parameters()), tolerance=0)
