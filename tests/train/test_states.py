"""State that goes on with a run: callbacks, and the logging window that was open at the checkpoint."""

import inspect
import json

import pytest
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from models import as_text, random_pairs, tiny_model, word_tokenizer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.record.seal import read_seal, seal_checkpoint
from simpo_trainer.train.checkpoints import check_processes_fit


class Counter(TrainerCallback, ExportableState):
    """Counts steps, and notes the count that a training began with."""

    def __init__(self, by=1):
        self.by, self.count, self.begun_with = by, 0, None

    def state(self):
        return {"args": {"by": self.by}, "attributes": {"count": self.count}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun_with = self.count

    def on_step_end(self, args, state, control, **kwargs):
        self.count += self.by


def trainer_in(folder, *callbacks):
    args = SimPOConfig(
        output_dir=str(folder),
        max_steps=24,
        logging_steps=2,
        save_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    pairs = Dataset.from_list([as_text(pair) for pair in random_pairs(12)])
    return SimPOTrainer(
        tiny_model(), args, train_dataset=pairs, processing_class=word_tokenizer(), callbacks=list(callbacks)
    )


@pytest.mark.slow
def test_a_resume_gives_callbacks_their_state_and_goes_on_with_the_open_window(tmp_path):
    first = trainer_in(tmp_path / "out", Counter(), Counter(by=10))
    first.train()
    counters = Counter(), Counter(by=10)
    second = trainer_in(tmp_path / "again", *counters)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))
    assert [counter.begun_with for counter in counters] == [9, 90]
    assert [counter.count for counter in counters] == [24, 240]
    assert all(counter in second.callback_handler.callbacks for counter in counters)
    # Step 9 is in the middle of the window of step 10.
    logs = [[entry for entry in each.state.log_history if "loss" in entry] for each in (first, second)]
    assert 10 in {entry["step"] for entry in logs[0]} and 9 not in {entry["step"] for entry in logs[0]}
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.skipif(
    "_initial_global_step" not in inspect.getsource(Trainer), reason="an older transformers divides by all steps"
)
def test_the_loss_of_a_training_is_of_its_own_steps(tmp_path):
    trainer_in(tmp_path).train()
    resumed = trainer_in(tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-21"))
    by_step = trainer_in(tmp_path / "all")
    by_step.args.logging_steps = 1
    by_step.train()
    losses = [entry["loss"] for entry in by_step.state.log_history if "loss" in entry][21:]
    assert resumed.training_loss == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_zero_in_another_number_of_processes_is_refused(tmp_path):
    (tmp_path / "seal.json").write_text(json.dumps({"open": False, "processes": 8, "files": {}}))
    check_processes_fit(tmp_path, 8)
    with pytest.raises(SimPOError, match="in 8 parts, one for each process, and this run has 4"):
        check_processes_fit(tmp_path, 4)


@pytest.mark.slow
def test_only_zero_needs_the_same_number_of_processes(tmp_path):
    trainer_in(tmp_path).train()
    seal = tmp_path / "checkpoint-21" / "seal.json"
    seal_checkpoint(seal.parent, {**read_seal(seal.parent), "processes": 2})
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=str(seal.parent))
    resumed.is_deepspeed_enabled = True
    with pytest.raises(SimPOError, match="in 2 parts, one for each process, and this run has 1"):
        resumed.train(resume_from_checkpoint=str(seal.parent))
