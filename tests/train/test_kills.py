"""SIGKILL at random moments, then the same command: the result is the same, bit for bit.

`MIMUON_KILLS=20 uv run pytest -n0 -m slow tests/train/test_kills.py` kills more often.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train import cli
from train.checkpoints import Checkpoints
from train.config import Config
from train.mesh import make_mesh
from train.metrics import read_metrics
from train.optimizers import make_optimizer
from train.step import State, make_state, parameter_shardings

KILLS = int(os.environ.get("MIMUON_KILLS", "3"))
STEPS = 100 + 50 * KILLS

pytestmark = pytest.mark.slow


def numbers(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without measurements of time."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "wall"} for line in lines]


def unfinished(directory: Path) -> list[Path]:
    """Checkpoints that are being written, or were being written when the process was killed."""
    return [p for p in (directory / "checkpoints").glob("*") if not p.name.isdecimal()]


@pytest.fixture
def command(text_file: Path) -> Callable[[Path], list[str]]:
    """The options of a short run in a directory."""

    def command(run_dir: Path) -> list[str]:
        return (
            f"lm --steps {STEPS} --batch-size 8 --evaluate-every 5 --data.path {text_file} "
            "--data.sequence-length 32 --model.hidden-size 32 --model.intermediate-size 64 "
            "--model.num-hidden-layers 2 --model.head-dim 8 --sample.length 8 --mesh data=1 "
            f"--run-dir {run_dir}"
        ).split()

    return command


@pytest.fixture
def start(
    command: Callable[[Path], list[str]], tmp_path: Path, repository: Path
) -> Callable[[Path], subprocess.Popen]:
    """Starts that run in its own process."""

    def start(run_dir: Path) -> subprocess.Popen[bytes]:
        settings = {
            "PYTHONPATH": str(repository),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "train", *command(run_dir)],
            cwd=tmp_path,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
        )

    return start


def final_state(config: Config) -> State | None:
    """The state in the newest checkpoint of a run."""
    mesh = make_mesh(config.mesh)
    task = config.task(mesh)
    optimizer, _ = make_optimizer(
        config.optimizer,
        steps=config.steps,
        matrices=task.matrices,
        shardings=parameter_shardings(task, mesh),
    )
    saved = Checkpoints(config.directory / "checkpoints", keep=2, best=task.best, warn=pytest.fail)
    with contextlib.closing(saved):
        return saved.restore(make_state(task, optimizer, mesh, config.seed))


def test_killed_processes_go_on_bit_for_bit(
    command: Callable[[Path], list[str]],
    start: Callable[[Path], subprocess.Popen],
    tmp_path: Path,
):
    assert start(tmp_path / "whole").wait(timeout=600) == 0
    parts, draw, in_a_save = tmp_path / "parts", np.random.default_rng(0), 0
    for kill in range(KILLS):
        process, lines = start(parts), len(numbers(parts))
        deadline = time.monotonic() + 600
        more = int(draw.integers(1, 40))
        moment: Callable[[], bool] = [
            lambda: bool(unfinished(parts)),  # during a save
            lambda lines=lines, more=more: len(numbers(parts)) not in range(lines, lines + more),
        ][kill % 2]
        while not moment() and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        in_a_save += bool(unfinished(parts))
    assert in_a_save > 0
    assert start(parts).wait(timeout=600) == 0
    assert numbers(parts) == numbers(tmp_path / "whole")
    configs = [cli.parse(command(directory)) for directory in (tmp_path / "whole", parts)]
    states = [final_state(config) for config in configs if config is not None]
    assert [int(state.step) for state in states if state is not None] == [STEPS, STEPS]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert not list(tmp_path.glob("*/checkpoints-damaged"))
    print(f"{KILLS} kills, {in_a_save} of them in a save")
