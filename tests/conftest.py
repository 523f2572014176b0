"""Tests run without network and without progress bars; both are decided when the libraries are imported."""

import gc
import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def pytest_collection_finish():
    """Training collects garbage at its start; what the libraries have made by now need not be searched each time."""
    gc.freeze()
