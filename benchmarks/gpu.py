"""Everything that needs a GPU, in one command: tests marked `gpu`, times, shares, training."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"


class Size(NamedTuple):
    """How much is measured."""

    sets: tuple[str, ...]  # of matrices, see `benchmarks.time`
    layers: int  # of the decoder
    vocabulary: int
    batch: int  # sequences
    length: int  # tokens per sequence
    seconds: float  # of training


FULL = Size(("qwen3-0.6b, 28 scanned", "yolo26m"), 28, 151_936, 16, 1024, 60.0)
TINY = Size(("small",), 1, 512, 2, 64, 2.0)  # tries the command on a CPU in a minute


def backend() -> str:
    """The platform that JAX would use, asked in another process: asking reserves GPU memory."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[-1]


def run_tests() -> int:
    """Runs the tests marked `gpu` in a separate process, which releases the memory when it ends."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda,cpu" if backend() == "gpu" else "cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests/test_gpu.py"]
    return subprocess.run(command, env=environment, check=False).returncode


def default_path(device: str) -> Path:
    """Where the results of a device are written: one file per day."""
    name = device.lower().replace(" ", "-")
    return RESULTS / f"{date.today().isoformat()}-{name}.json"


def rows(size: Size, rounds: int, tokens: Path | None) -> Iterator[NamedTuple]:
    """Ceilings and updates, shares of a training step, and real training; the latter last."""
    from benchmarks import time, training

    yield from time.rows(list(size.sets), rounds)
    shape = (size.layers, size.batch, size.length)
    yield from training.shares(*shape, rounds, vocabulary=size.vocabulary, dtype="bfloat16")
    yield from training.run(*shape, size.vocabulary, size.seconds, tokens)
