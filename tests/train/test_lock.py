"""One run, one folder: who holds an output folder, who waits, who is refused, and who takes over."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from models import random_pairs
from runs import make_trainer
from simpo_trainer import SimPOError
from simpo_trainer.publish.hub import stage_files
from simpo_trainer.train import lock
from simpo_trainer.train.lock import LOCK, FolderLock, one_run
from simpo_trainer.train.lock_file import Holder, LockFile, this_process

# They wait for other processes.
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")  # quick: nothing is imported again
HERE = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ENVIRONMENT = HERE | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
ELSEWHERE = Holder("node7", "another machine", 4242, 0.0, "2026-01-02 03:04:05", "id of the other")


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.3)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.6)
    monkeypatch.setattr(lock, "_POLL", 0.02)


@pytest.fixture
def no_record_locks(monkeypatch):
    """A file system whose locks other processes do not see."""
    monkeypatch.setattr(LockFile, "try_lock", lambda file: None)


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])


def write(folder: Path, holder: Holder) -> Path:
    """A lock file as another process leaves it or holds it; this process has no lock of it."""
    file = LockFile(folder / LOCK)
    file.write(holder)
    file.close()
    return folder / LOCK


class Endless:
    """Rows of which the second never comes: a worker that loads them outlives its parent."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            time.sleep(60)
        return index


def _hold(folder: Path, child: str | None, connection) -> None:
    """Hold the folder until a message comes; what is sent is the number of a child that lives on, or the refusal."""
    try:
        with one_run(arguments(folder)):
            number = 0
            if child == "fork":
                forked = FORK.Process(target=time.sleep, args=(60,), daemon=True)
                forked.start()
                number = forked.pid
            elif child == "loader":
                batches = iter(DataLoader(Endless(), num_workers=1, batch_size=1, multiprocessing_context="fork"))
                next(batches)
                number = batches._workers[0].pid
            connection.send(number)
            connection.poll(60)
    except SimPOError as error:
        connection.send(str(error))


@contextmanager
def held_by_another_process(folder: Path, child: str | None = None):
    """A process that holds the folder, its connection, and the number of its child."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(folder, child, theirs))
    process.start()
    try:
        assert ours.poll(30), "it neither holds the folder nor is refused"
        said = ours.recv()
        assert isinstance(said, int), said
        yield process, ours, said
    finally:
        process.kill()
        process.join()


@contextmanager
def beating(file: Path):
    """While entered, the file is touched as by a holder on another machine."""
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def at_most(seconds: float):
    """Fails where what it holds takes longer."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def test_the_folder_is_held_and_left_as_it_was(tmp_path):
    with one_run(arguments(tmp_path)):
        assert (tmp_path / LOCK).is_file()
    assert os.listdir(tmp_path) == []


def test_the_folder_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), one_run(arguments(tmp_path)):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [] and not lock._held


def test_one_process_may_hold_it_several_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_run(arguments(tmp_path / "out")):
        with one_run(arguments(Path("out"))):
            pass
        assert (tmp_path / "out" / LOCK).is_file()
        with one_run(arguments(tmp_path / "other")):
            pass
    assert os.listdir("out") == []


def test_the_working_directory_may_change_meanwhile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_run(arguments(Path("out"))):
        monkeypatch.chdir("/")
        next(iter(lock._held.values())).check()
    assert os.listdir(tmp_path / "out") == [] and not lock._held


def test_another_process_is_refused_with_the_holder_and_what_to_do(tmp_path, caplog):
    caplog.set_level("INFO", "simpo_trainer")
    with held_by_another_process(tmp_path) as (process, _, _):
        before = (tmp_path / LOCK).read_text()
        with pytest.raises(SimPOError) as caught, one_run(arguments(tmp_path)):
            pass
        holder = Holder(**json.loads(before))
        assert (tmp_path / LOCK).read_text() == before
    assert (holder.pid, holder.host) == (process.pid, os.uname().nodename)
    assert str(caught.value) == (
        f"output_dir {tmp_path} is in use by another run (host {holder.host}, pid {process.pid}, since "
        f"{holder.started} UTC), and two runs would destroy each other's files. Wait for its end, stop it (kill "
        f"{process.pid}), or set output_dir to another folder."
    )
    waiting = [record.message for record in caplog.records if "Waiting" in record.message]
    assert waiting == [
        f"{tmp_path} is in use by another run ({holder}). Waiting for its end, for {lock.WAIT:.0f} s at most."
    ]


def test_one_that_waits_gets_the_folder_when_its_holder_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 60)
    with held_by_another_process(tmp_path) as (process, connection, _):
        timer = threading.Timer(0.1, connection.send, ["end"])
        timer.start()
        with at_most(30), one_run(arguments(tmp_path)):
            assert Holder(**json.loads(_peek(tmp_path))).pid == os.getpid()
        timer.join()
        process.join(30)
        assert process.exitcode == 0
    assert os.listdir(tmp_path) == []


def _enter_as(rank: int, port: int, folder: Path, connection) -> None:
    """Enter as one of two processes, and send the refusal, if there is one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    args = arguments(folder)
    assert (args.process_index, args.world_size) == (rank, 2)
    try:
        with one_run(args), one_run(args):
            args.distributed_state.wait_for_everyone()
            connection.send("")
    except SimPOError as error:
        connection.send(str(error))


def _enter_by_two(folder: Path) -> list[str]:
    """The refusals of two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [FORK.Pipe() for _ in range(2)]
    processes = [FORK.Process(target=_enter_as, args=(i, port, folder, pipes[i][1]), daemon=True) for i in range(2)]
    for process in processes:
        process.start()
    try:
        assert all(ours.poll(60) for ours, _ in pipes), "a process hangs"
        return [ours.recv() for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_every_process_of_a_run_is_refused(tmp_path):
    with held_by_another_process(tmp_path) as (holder, _, _):
        first, second = _enter_by_two(tmp_path)
    assert f"pid {holder.pid}, since" in first and second == first


def test_the_processes_of_a_run_share_the_folder(tmp_path):
    assert _enter_by_two(tmp_path) == ["", ""]


def _peek(folder: Path) -> str:
    """The lock file's text, read by another process: this one would lose its lock by closing the file."""
    return subprocess.run(["cat", folder / LOCK], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("child", ["fork", "loader"])
def test_a_child_that_outlives_a_killed_holder_keeps_nothing(tmp_path, child):
    with held_by_another_process(tmp_path, child) as (process, _, number):
        process.kill()
        process.join()
        orphan = psutil.Process(number)
        try:
            assert orphan.is_running() and (tmp_path / LOCK).is_file()
            with at_most(0.2), one_run(arguments(tmp_path)):
                assert orphan.is_running()
        finally:
            orphan.kill()


def test_a_forked_child_neither_holds_nor_gives_back(tmp_path):
    """The end of a child must leave the folder to its parent; and a child that trains there is another run."""

    def ask(sender):
        try:
            with one_run(arguments(tmp_path)):
                sender.send("")
        except SimPOError as error:
            sender.send(str(error))
        inherited.release()

    with one_run(arguments(tmp_path)):
        (inherited,) = lock._held.values()
        receiver, sender = FORK.Pipe()
        child = FORK.Process(target=ask, args=(sender,), daemon=True)
        child.start()
        assert receiver.poll(30) and f"pid {os.getpid()}," in receiver.recv()
        child.join(30)
        assert child.exitcode == 0 and (tmp_path / LOCK).is_file()
        with pytest.raises(AssertionError, match="in use"), held_by_another_process(tmp_path):
            pass


def test_workers_that_load_batches_leave_the_lock(tmp_path):
    with one_run(arguments(tmp_path)):
        loader = DataLoader(list(range(4)), num_workers=1, multiprocessing_context="fork")
        assert len(list(loader)) == 4  # the worker has ended, and closed what it inherited
        with pytest.raises(AssertionError, match="in use"), held_by_another_process(tmp_path):
            pass


def test_a_file_that_was_removed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may end and remove it: another run makes a new one then."""
    try_lock = LockFile.try_lock
    removed = []

    def after_the_holder_ended(file):
        if not removed:
            removed.append(file.path.unlink())
        return try_lock(file)

    monkeypatch.setattr(LockFile, "try_lock", after_the_holder_ended)
    with one_run(arguments(tmp_path)):
        assert removed and (tmp_path / LOCK).is_file()


def test_a_holder_on_another_machine_with_a_heartbeat_refuses(tmp_path, caplog, monkeypatch):
    """Its record lock is not seen here; its clock may be wrong by any amount."""
    caplog.set_level("INFO", "simpo_trainer")
    monkeypatch.setattr(lock, "SILENCE", 20)  # no need to wait for so long: signs of life were seen
    file = write(tmp_path, ELSEWHERE)
    with at_most(10), beating(file), pytest.raises(SimPOError) as caught, one_run(arguments(tmp_path)):
        pass
    assert (
        f"is in use by another run (host node7, pid 4242, since 2026-01-02 03:04:05 UTC), and two runs would destroy "
        f"each other's files. Wait for its end, stop it, or set output_dir to another folder. If no such process is "
        f"left, remove {file}."
    ) in str(caught.value)
    assert "Waiting for its end, or a sign of life, for 20 s at most." in caplog.text
    assert json.loads(file.read_text())["id"] == ELSEWHERE.id


@pytest.mark.parametrize("days", [-400, 0, 400])
def test_a_silent_holder_on_another_machine_is_replaced(tmp_path, caplog, days):
    file = write(tmp_path, ELSEWHERE)
    os.utime(file, (time.time() + days * 86400,) * 2)
    begun = time.monotonic()
    with one_run(arguments(tmp_path)):
        assert time.monotonic() - begun >= lock.SILENCE
        assert json.loads(_peek(tmp_path))["pid"] == os.getpid()
    assert f"Taking over {tmp_path} from a run that has given no sign of life for 1 s (host node7, pid" in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_silent_holder_whose_record_lock_is_seen_is_not_replaced(tmp_path):
    with held_by_another_process(tmp_path):
        write(tmp_path, ELSEWHERE)  # the lock stays with the process
        with pytest.raises(SimPOError, match="host node7"), one_run(arguments(tmp_path)):
            pass


def test_a_holder_gives_signs_of_life(tmp_path):
    with one_run(arguments(tmp_path)):
        first, end = (tmp_path / LOCK).stat().st_mtime_ns, time.monotonic() + 30
        while (tmp_path / LOCK).stat().st_mtime_ns == first:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert "heartbeat of the folder" in [thread.name for thread in threading.enumerate()]
    assert "heartbeat of the folder" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_a_running_holder_of_this_machine_refuses(tmp_path):
    other = subprocess.Popen(["sleep", "60"])
    try:
        started = psutil.Process(other.pid).create_time()
        write(tmp_path, replace(this_process(), pid=other.pid, process_started=started))
        with pytest.raises(SimPOError, match=f"pid {other.pid}"), one_run(arguments(tmp_path)):
            pass
        other.kill()  # a zombie until it is waited for
        with at_most(0.2), one_run(arguments(tmp_path)):
            pass
    finally:
        other.kill()
        other.wait()


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_a_later_process_with_its_number_does_not_refuse(tmp_path):
    write(tmp_path, replace(this_process(), pid=os.getppid(), process_started=1.0))
    with at_most(0.2), one_run(arguments(tmp_path)):
        pass


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_a_file_that_this_process_could_not_remove_does_not_refuse(tmp_path):
    write(tmp_path, this_process())
    with at_most(0.2), one_run(arguments(tmp_path)):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 3}'])
def test_a_file_that_tells_nothing_and_that_nobody_holds_is_free(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with at_most(0.2), one_run(arguments(tmp_path)):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["written over", "made anew"])
def test_a_holder_whose_folder_was_taken_over_stops_and_leaves_the_file(tmp_path, how):
    with pytest.raises(SimPOError, match=r"Another run \(.*\) has taken over .* It stops here"):
        with one_run(arguments(tmp_path)):
            (held,) = lock._held.values()
            held.check()
            if how == "made anew":
                (tmp_path / LOCK).unlink()
                held.check()  # nobody has it yet
            write(tmp_path, ELSEWHERE)
            with one_run(arguments(tmp_path)):
                raise AssertionError("it went on")
    assert json.loads((tmp_path / LOCK).read_text())["id"] == ELSEWHERE.id


def test_the_heartbeat_notices_that_the_folder_was_taken_over(tmp_path):
    with one_run(arguments(tmp_path)):
        (held,) = lock._held.values()
        write(tmp_path, ELSEWHERE)
        held._thread.join(30)
        with pytest.raises(SimPOError, match="node7"):
            held.check(look=False)


class _TakeOver(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            write(Path(args.output_dir), ELSEWHERE)


def test_a_training_whose_folder_was_taken_over_writes_no_checkpoint(tmp_path, monkeypatch):
    """It looks before each checkpoint; the callbacks that ask for one come before the one that looks."""
    monkeypatch.setattr(lock, "BEAT", 60)
    trainer = make_trainer(
        tmp_path, random_pairs(8), per_device_train_batch_size=2, save_strategy="steps", save_steps=1
    )
    trainer.add_callback(_TakeOver())
    with pytest.raises(SimPOError, match="has taken over"):
        trainer.train()
    assert [file.name for file in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (tmp_path / LOCK).is_file()


@pytest.mark.slow
def test_trainers_hold_the_folder_and_follow_each_other(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((tmp_path / LOCK).is_file())

        def on_save(self, args, state, control, **kwargs):
            seen.append((tmp_path / LOCK).is_file())

    for _ in range(2):
        trainer = make_trainer(tmp_path, random_pairs(8))
        trainer.add_callback(Look())
        trainer.train()
        assert not (tmp_path / LOCK).exists()
        trainer.finish()
        assert not (tmp_path / LOCK).exists()
    assert seen == [True, True]


@pytest.mark.slow
def test_a_trainer_neither_trains_nor_finishes_in_the_folder_of_another_run(tmp_path):
    trainer = make_trainer(tmp_path, random_pairs(8))
    with held_by_another_process(tmp_path), pytest.raises(SimPOError, match="is in use by another run"):
        trainer.train()
    trainer.train()
    before = sorted(os.listdir(tmp_path))
    with held_by_another_process(tmp_path), pytest.raises(SimPOError, match="is in use by another run"):
        trainer.finish()
    assert sorted(set(os.listdir(tmp_path)) - {LOCK}) == before
    assert trainer.finish()["train_loss"] > 0


def test_the_file_is_not_pushed(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", ELSEWHERE)
    (tmp_path / "out" / "config.json").write_text("{}")
    stage_files(tmp_path / "out", tmp_path / "staged", {})
    assert os.listdir(tmp_path / "staged") == ["config.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_closed(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SimPOError, match=r"cannot be written: Permission denied\. Set output_dir"):
        FolderLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SimPOError, match=r"cannot be written: Not a directory\. Set output_dir"):
        FolderLock(tmp_path / "file" / "out").acquire()


def test_importing_needs_no_fcntl(tmp_path):
    code = "import sys; sys.modules['fcntl'] = None; from simpo_trainer.train import lock_file as module; "
    code += "from pathlib import Path; print(module.LockFile(Path(sys.argv[1])).try_lock())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / LOCK)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "None\n", done.stderr
