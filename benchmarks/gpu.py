"""Everything that needs a GPU, in one command: tests marked `gpu`, times, shares, training.

Every part runs in a process of its own, the most valuable ones first, until the time is up. What
JAX has compiled and tuned is kept in `.cache`, so that a second run starts where the first ended.
"""

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.isolated import Part, guarded, isolated

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: Without these there is nothing to compare; the other forms come last.
FIRST = ("optax", "default", "standard float16")

MINUTES = 5.8


class Size(NamedTuple):
    """How much is measured."""

    sets: tuple[str, ...]  # of matrices, see `benchmarks.time`
    layers: int  # of the decoder
    vocabulary: int
    batch: int  # sequences
    length: int  # tokens per sequence
    seconds: float  # of training
    workers: int  # processes of tests


class Tests(NamedTuple):
    """How many tests of `tests/test_gpu.py` ended in which way."""

    passed: int
    failed: int
    skipped: int


FULL = Size(("qwen3-0.6b, 28 scanned", "yolo26m"), 28, 151_936, 16, 1024, 60.0, 12)
TINY = Size(("tiny",), 1, 512, 2, 64, 2.0, 0)  # tries the command on a CPU in a minute


def card() -> tuple[str, list[str]]:
    """The platform that JAX would use, and the names of the card.

    Other processes are asked, because asking reserves memory of the GPU.
    """
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='|')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    platform, name = done.stdout.splitlines()[-1].split("|")
    if shutil.which("nvidia-smi") is None:
        return platform, [name]
    fields = "name,driver_version,power.limit,clocks.max.sm,temperature.gpu"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    driver = subprocess.run(query, check=False, capture_output=True, text=True).stdout.strip()
    return platform, [name, driver]


def default_path(device: str) -> Path:
    """Where the results of a device are written: one file per run."""
    name = device.lower().replace(" ", "-")
    return RESULTS / f"{datetime.now():%Y-%m-%d-%H%M}-{name}.json"


def rows(
    size: Size, rounds: int, tokens: Path | None, seconds: float, platform: str
) -> Iterator[NamedTuple]:
    """Rows of all parts, each part with how it ended, and then the goals.

    Args:
        size: how much is measured.
        rounds: measurements, of which the median is taken.
        tokens: file of little-endian uint16 tokens to train on; None: random tokens.
        seconds: for everything.
        platform: of JAX, "gpu" or "cpu".
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    end = time.monotonic() + seconds
    seen: list[Any] = []
    for part, function, arguments, least, later in _parts(
        size, rounds, tokens, platform, end, seen
    ):
        start = time.monotonic()
        allowed = end - start - later * min(seconds / (60 * MINUTES), 1.0)
        late = f"skipped, {max(allowed, 0.0):.0f} s are left"
        running = isolated(function, arguments, allowed) if allowed > least else [late]
        for row in running:
            if isinstance(row, str):
                yield Part(part, time.monotonic() - start, row)
            else:
                seen.append(row)
                yield row
    from benchmarks.goals import goals

    yield from goals(seen, size.sets)


def _parts(
    size: Size, rounds: int, tokens: Path | None, platform: str, end: float, seen: list[Any]
) -> Iterator[tuple[str, Callable, tuple, float, float]]:
    """Name, function, arguments, and two times in seconds.

    A part is skipped if it has less than the first, with the second left for the parts after it.
    Most time is spent on compiling and tuning kernels, about a second for each kind of product: 10
    in an update of the decoder, 29 in a training step, 76 in an update of the detector.
    """
    decoder, *others = size.sets
    shape = (size.layers, size.batch, size.length)
    of_shares = (*shape, rounds, size.vocabulary, "bfloat16")
    yield "tests", run_tests, (size.workers, platform), 20, 250
    yield f"products, update: {decoder}", _products_and_updates, (decoder, rounds), 20, 170
    yield "share of an update", _shares, (*of_shares, ("default",)), 20, 105
    ceilings = _ceilings(seen)
    for name in others:
        first = (name, rounds, ceilings, FIRST[:2], True)
        yield f"update: {name}", _updates, first, 150, 105
    rate = ceilings.get("bfloat16", math.nan)
    training = (*shape, size.vocabulary, size.seconds, tokens, rate, end)
    yield "training", _training, training, 20, 0
    rest = ("mimuon, default", "standard", "optax", "fast")
    yield "other shares", _shares, (*of_shares, rest), 20, 0
    for name in size.sets:
        yield f"other forms: {name}", _updates, (name, rounds, ceilings, None, False), 20, 0


def run_tests(workers: int, platform: str) -> Iterator[Tests]:
    """Runs the tests marked `gpu`, in so many processes; 0: in this one.

    Raises:
        RuntimeError: a test failed, or none ran on a GPU.
    """
    import pytest

    os.chdir(ROOT)
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if platform == "gpu" else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"  # NumPy in each worker: most of a test is its SVD
    # The tests are about accuracy. To time many kernels for each product would take minutes.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    outcomes = _Outcomes()
    several = ["-n0"] if workers == 0 else [f"-n{workers}", f"--maxprocesses={workers}"]
    # A warning about a card that nobody has seen is worth reading, not a failure.
    options = ["-v", "--tb=short", *several, "--dist=load", "-W", "default", "-m", "gpu"]
    code = pytest.main([*options, "tests/test_gpu.py"], plugins=[outcomes])
    tests = Tests(*(len(outcomes.found.get(name, [])) for name in Tests._fields))
    yield tests
    if code or (platform == "gpu" and not tests.passed):
        failed = outcomes.found.get("failed", []) + outcomes.found.get("error", [])
        raise RuntimeError(f"pytest ended with code {int(code)}: {', '.join(failed)}")


class _Outcomes:
    """A plugin of pytest that keeps the names of tests by outcome."""

    found: Mapping[str, list[str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.found = {
            outcome: [getattr(report, "nodeid", "") for report in reports]
            for outcome, reports in terminalreporter.stats.items()
        }


def _products_and_updates(name: str, rounds: int) -> Iterator[NamedTuple]:
    """Ceilings, and the first implementations; here and below JAX starts in a part's process."""
    from benchmarks import time

    measured = []
    for row in guarded("large products", time.products(rounds)):
        measured.append(row)
        yield row
    yield from _updates(name, rounds, _ceilings(measured), FIRST, True)


def _ceilings(rows: Iterable[Any]) -> dict[str, float]:
    """TFLOP/s by kind of product."""
    return {row.product: row.tflops for row in rows if hasattr(row, "product")}


def _updates(
    name: str,
    rounds: int,
    ceilings: Mapping[str, float],
    chosen: Collection[str] | None,
    first: bool,
) -> Iterator[NamedTuple]:
    """The chosen implementations, or the baseline and all that are not in `FIRST`."""
    from benchmarks import time

    shapes = (time.sets() | {"tiny": time.TINY})[name]
    found = time.optimizers(shapes, half=True)
    others = (time.BASELINE, *(n for n in found if n not in FIRST))
    implementations = {n: found[n] for n in chosen or others}
    arguments = (name, shapes, implementations, ceilings, rounds)
    yield from time.of_set(*arguments, torch=first, profiled=first)


def _shares(*arguments: Any) -> Iterator[NamedTuple]:
    """Shares of a training step."""
    from benchmarks import training

    yield from training.shares(*arguments)


def _training(*arguments: Any) -> Iterator[NamedTuple]:
    """Real training."""
    from benchmarks import training

    yield from training.run(*arguments)
