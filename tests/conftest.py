"""What holds for all tests; the environment is read when the libraries are imported, which is after this file."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

# No network, no telemetry, no progress bars.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
# A test run in the background of a shell ignores these, and what it starts would inherit that.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
# Threads of a tiny product mostly wait for each other: on a busy machine, two take ten times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of the real model, made on the first use."""
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    from real_model import FOLDER, gguf_file, prepare

    if gguf_file() is None:
        pytest.skip("make install-real")
    return prepare(FOLDER)


def pytest_collection_finish():
    """Each training collects garbage at its start; what the libraries have made by now need not be searched again."""
    gc.freeze()


def pytest_runtest_teardown(item, nextitem):
    """The same for what a file of tests leaves behind."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
