"""`make gpu` without a card: the order of its cases, its limits, its page, and that it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from processes import still_running

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.append(str(SCRIPTS))

import bench_process  # noqa: E402
import gpu  # noqa: E402
import gpu_cases  # noqa: E402
import gpu_page  # noqa: E402
from bench_rows import model_shape  # noqa: E402
from gpu_cases import CASES, FLASH, FLEX, PACKED, TRL, Case  # noqa: E402

SAME = {"code": "abc", "device": "a card"}
FIRST = CASES[0]


@pytest.fixture(autouse=True)
def _all_packages(monkeypatch):
    monkeypatch.setattr(gpu_cases, "_is_there", lambda package: True)


def row(loss=1.0, rate=2.0):
    """What a worker's result comes to."""
    figures = {"pairs_per_second": rate, "tokens_per_second": 20.0, "peak_bytes": 2**31, "waits": 0.01}
    return {**figures, "last_loss": loss, "over_floor": 1.5, "losses": [2.0, loss], "seconds": 30.0}


def ran(results, budget, run):
    """The names of the cases that are run, in order."""
    names = []

    def noted(case, seconds):
        names.append((case.name, seconds))
        return run(case, seconds)

    gpu.run_cases(results, time.monotonic() + budget, noted, lambda: None)
    return names


# ---- Cases ----


def test_what_is_worth_most_comes_first():
    assert [(case.model, case.training, case.row) for case in CASES[:4]] == [
        *(("1b", "full", PACKED), ("1b", "full", TRL), ("1b", "LoRA", PACKED), ("1b", "LoRA", TRL)),
    ]
    assert len({case.name for case in CASES}) == len(CASES)
    for group in gpu_cases.GROUPS:  # something to compare losses with
        assert sum(case.group == group for case in CASES) > 1


def test_a_case_is_the_options_of_the_benchmark():
    case = Case("8b", "QLoRA", PACKED, FLEX)
    options = gpu.benchmark.parse(case.words())
    assert (options.model, options.vocab, options.qlora, options.attention) == ("8b", 128256, True, FLEX)
    assert options.rows == [PACKED] and options.gradient_checkpointing and options.hidden is None
    tiny = gpu.benchmark.parse(case.words(tiny=True))
    assert (tiny.hidden, tiny.device, tiny.qlora, tiny.vocab) == (128, "cpu", True, 500)
    job = gpu.make_job(tiny)
    assert (job["lora"], job["qlora"], job["attention"]) == (True, True, FLEX)


def test_weights_are_counted_as_published():
    """Llama-3.2-1B has 1.24 billion weights, its embedding tied; Llama-3.1-8B has 8.03 billion."""
    assert gpu_cases.parameters("1b") == 1_235_814_400
    assert gpu_cases.parameters("8b") == 8_030_261_248
    assert model_shape("1b", 500, 64, None, None)["tie_word_embeddings"]
    assert "120 GiB" in gpu_cases.left_out()


@pytest.mark.parametrize(
    ("package", "case"),
    [
        ("flash_attn", Case("1b", "full", PACKED, FLASH)),
        ("bitsandbytes", Case("8b", "QLoRA", PACKED)),
        ("trl.experimental.cpo", Case("1b", "full", TRL)),
    ],
)
def test_a_case_without_its_package_is_a_line_with_the_reason(package, case, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_cases, "_is_there", lambda name: name != package)
    assert gpu_cases.lacks(case) == package and gpu_cases.lacks(FIRST) is None
    assert f"| {case.row} | {case.attention} | skipped: {package} is not installed |" in gpu_page.page({}, {})
    names = ran(gpu.Results(tmp_path / "results.jsonl", SAME), 1e6, lambda case, seconds: row())
    assert case.name not in [name for name, _ in names] and len(names) > 10


def test_a_package_in_a_package_that_is_missing(monkeypatch):
    monkeypatch.undo()
    assert gpu_cases._is_there("json") and not gpu_cases._is_there("no_such_package.inside")


# ---- Running ----


def test_cases_go_on_after_one_that_fails_and_end_with_the_time(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def run(case, seconds):
        clock[0] += 50
        return {"error": "out of memory"} if case is CASES[1] else row()

    results = gpu.Results(tmp_path / "results.jsonl", SAME)
    names = ran(results, 215, run)
    assert names == list(
        zip([case.name for case in CASES], [gpu.CASE_LIMIT, gpu.CASE_LIMIT, 115.0, 65.0], strict=False)
    )
    assert f"{CASES[1].name}: out of memory" in capsys.readouterr().out
    assert results.found[CASES[1].name]["error"] == "out of memory"
    # The same code on the same device goes on behind them; others begin anew, and a line that was cut off is nothing.
    with results.file.open("a") as file:
        file.write('{"case": "cut o')
    again = gpu.Results(results.file, SAME)
    assert list(again.found) == [case.name for case in CASES[:4]]
    clock[0] = 0.0
    assert ran(again, 60, run)[0][0] == CASES[4].name
    assert list(gpu.Results(results.file, SAME).found) == [case.name for case in CASES[:5]]
    for other in ({"code": "abd"}, {"device": "another card"}):
        assert not gpu.Results(results.file, {**SAME, **other}).found


def test_what_the_end_of_the_budget_cuts_off_is_run_again(tmp_path):
    def late(case, seconds):
        return {"error": "ended", "late": True}

    results = gpu.Results(tmp_path / "results.jsonl", SAME)
    gpu.run_cases(results, time.monotonic() + gpu.CASE_LEAST + 5, late, lambda: None)
    assert not results.found
    # One that had all the time that a case may take would not be faster then.
    gpu.run_cases(results, time.monotonic() + 1e6, late, lambda: None)
    assert FIRST.name in results.found


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Puts a script in the place of the worker."""

    def put(text):
        (tmp_path / "bench_worker.py").write_text(f"import json, os, subprocess, sys, time\n{text}")
        monkeypatch.setattr(bench_process, "_SCRIPTS", tmp_path)

    return put


@pytest.mark.slow
def test_a_worker_at_its_limit_is_ended_with_its_children(worker, tmp_path):
    children = tmp_path / "children"
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    worker(f"one = subprocess.Popen({sleeper})\nopen({str(children)!r}, 'w').write(str(one.pid))\none.wait()")
    found = bench_process.measured(PACKED, {}, seconds=3)
    assert found == {"error": "ended after 3 s, which was its limit", "late": True}
    number = int(children.read_text())
    left = [psutil.Process(number)] if psutil.pid_exists(number) else []
    assert not still_running(left, seconds=20)


@pytest.mark.slow
def test_a_worker_whose_parent_was_killed_ends_by_itself(worker, tmp_path):
    """`make gpu` killed outright leaves nobody to end the case that was running."""
    worker(
        f"sys.path.append({str(SCRIPTS)!r})\nfrom bench_process import end_by_itself\n"
        "end_by_itself({'own_end': 1})\ntime.sleep(600)"
    )
    assert bench_process.measured(PACKED, {}) == {"error": "killed by signal 14, as happens when memory runs out"}


def test_a_worker_gets_its_job_and_says_why_it_failed(worker):
    worker("json.dump(json.load(open(sys.argv[1] + '/job.json')), open(sys.argv[1] + '/result.json', 'w'))")
    assert bench_process.measured(PACKED, {"steps": 3}, seconds=60) == {"steps": 3, "own_end": 65}
    worker("print('much'); sys.exit('torch.OutOfMemoryError: CUDA out of memory')")
    assert bench_process.measured(PACKED, {}) == {"error": "torch.OutOfMemoryError: CUDA out of memory"}


def test_without_a_card_nothing_is_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "measured", pytest.fail)
    with pytest.raises(SystemExit, match="^error: no CUDA device is visible, so nothing was run"):
        gpu.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


# ---- The page ----


def test_the_page_of_the_project_says_that_it_ran_on_no_card():
    """Until a card has: then it names it, and this test asks for the head alone."""
    found = (ROOT / "docs" / "gpu.md").read_text()
    assert found.startswith(gpu_page._HEAD)
    if "| device |" not in found:
        assert found == gpu_page.page(None, {}) and "It has run on no card so far" in found


def test_a_page_shows_figures_reasons_and_agreement():
    trl = Case("1b", "full", TRL)
    found = {
        FIRST.name: row(loss=1.001, rate=6.0),
        trl.name: row(),
        Case("1b", "LoRA", PACKED).name: {"error": f"no | file {ROOT / 'x.py'} " + "long " * 99},
    }
    tests = {"said": "1 failed, 2 passed in 3.00s", "failed": ["FAILED tests/x.py::test_y"]}
    page = gpu_page.page({"device": "a card", "commit": "abc"}, found, tests)
    assert "| device | a card |" in page and "no card" not in page
    assert "1 failed, 2 passed in 3.00s\n- FAILED tests/x.py::test_y" in page
    assert f"| {PACKED} | sdpa | 6.00 | 3.00 | 20 | 2.00 | 1.00 | 1.0% | 1.00100 | 1.50 | 30 |" in page
    assert "Losses of all 2 steps agree between 2 rows: the largest difference is 0.10%, 3% are allowed." in page
    assert "| ours, packed | sdpa | failed: no / file " in page and str(ROOT) not in page
    assert "| ours, padded | sdpa | not run: the time was over |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith(("| row", "| ours", "| trl"))}
    assert len(widths) == 1
    assert not gpu_page.disagreements(found)
    found[trl.name] = row(loss=1.1)
    assert gpu_page.disagreements(found) == ["1b, full"]
    assert "**LOSSES DISAGREE** by more than 3% between rows." in gpu_page.page({}, found)


# ---- All of it ----


def command(*words):
    return [sys.executable, str(SCRIPTS / "gpu.py"), "--device", "cpu", *words]


@pytest.mark.slow
def test_on_a_cpu_with_tiny_models_stopped_and_going_on(tmp_path):
    """One case in the first run, which is stopped in its second; the next has the first one's line and goes on."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    run = subprocess.Popen(command("--out", str(tmp_path)), **pipe)
    line = next(line for line in run.stdout if line.startswith(FIRST.name))
    assert "pairs/s" in line
    run.send_signal(signal.SIGINT)
    assert "stopped; gpu.md has what was found" in run.communicate(timeout=60)[0] and run.returncode == 130
    page = (tmp_path / "gpu.md").read_text()
    assert "| device | cpu |" in page and "not run: the time was over" in page
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["tests marked gpu", FIRST.name]
    assert "skipped" in json.loads(lines[0])["said"]

    again = subprocess.Popen(command("--out", str(tmp_path)), **pipe)
    line = next(line for line in again.stdout if " pairs/s " in line)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert line.startswith(CASES[1].name) and again.returncode == 130
    assert "Losses of all 4 steps agree between 2 rows" in (tmp_path / "gpu.md").read_text()
