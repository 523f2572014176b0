"""The rate of large matrix products, and the device they ran on: `python bench_rate.py FOLDER rate`.

Reads FOLDER/job.json, writes FOLDER/result.json. Imports torch alone, because a benchmark begins with it.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_process import end_by_itself


def matrix_rate(cuda: bool) -> dict[str, Any]:
    """Operations per second of a product of square matrices, the best of several, in the dtype of the training."""
    size, dtype, device = (8192, torch.bfloat16, "cuda") if cuda else (2048, torch.float32, "cpu")
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return {"flops_per_second": 2 * size**3 / best, "threads": torch.get_num_threads(), **_device(cuda)}


def _device(cuda: bool) -> dict[str, Any]:
    """Its name; of a CUDA device also its memory in bytes and the versions of driver and CUDA."""
    if not cuda:
        return {"device": "cpu"}
    memory = torch.cuda.get_device_properties(0).total_memory
    name = torch.cuda.get_device_name()
    return {"device": name, "memory_bytes": memory, "cuda": torch.version.cuda, "driver": _driver()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        said = []
    return said[0] if said else "unknown"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    end_by_itself(job)
    (folder / "result.json").write_text(json.dumps(matrix_rate(job["cuda"])))
