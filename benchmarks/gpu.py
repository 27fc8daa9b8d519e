"""Everything that needs a GPU, in one command: tests marked `gpu`, times, shares."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"
SETS = ("qwen3-0.6b", "yolo26m")


def run_tests() -> int:
    """Runs the tests marked `gpu` in a separate process, which releases the memory when it ends."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda,cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests/test_gpu.py"]
    return subprocess.run(command, env=environment, check=False).returncode


def default_path(device: str) -> Path:
    """Where the results of a device are written: one file per day."""
    name = device.lower().replace(" ", "-")
    return RESULTS / f"{date.today().isoformat()}-{name}.json"


def rows(rounds: int = 5) -> Iterator[NamedTuple]:
    """Times of both sets, and shares of a real training step: 16 sequences of 1024 tokens."""
    from benchmarks import time, training

    yield from time.rows(list(SETS), rounds)
    yield from training.shares(28, 16, 1024, rounds, vocabulary=151_936, dtype="bfloat16")
