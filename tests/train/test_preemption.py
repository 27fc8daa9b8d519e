"""Two processes of one run: a signal to one of them ends both after the same saved step."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from train.checkpoints import Checkpoints
from train.step import State

pytestmark = pytest.mark.slow


def steps(directory: Path) -> list[int]:
    names = (p.name for p in directory.glob("*") if p.name.isdecimal())
    return sorted(int(name) for name in names)


def start(directory: Path, repository: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = repository / "tests" / "train" / "preempted.py"
    return [
        subprocess.Popen(
            [sys.executable, script, address, str(index), directory],
            env=os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path: Path, repository: Path):
    ended = 0
    for told in (1, 0):  # the second time they resume
        processes = start(tmp_path, repository)
        deadline = time.monotonic() + 300
        while steps(tmp_path)[-1:] <= [ended] and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        processes[told].send_signal(signal.SIGTERM)
        said = [p.communicate(timeout=120)[0].split()[-2:] for p in processes]  # after Gloo
        assert [process.returncode for process in processes] == [0, 0]
        assert said[0] == said[1] == [str(steps(tmp_path)[-1]), "SIGTERM"]
        assert steps(tmp_path)[-1] > ended
        ended = steps(tmp_path)[-1]
    zero = jnp.int32(0)
    like = State(step=zero, skipped=zero, params={"w": jnp.zeros(8)}, model_state={}, opt_state=())
    saved = Checkpoints(tmp_path, keep=2, best=("loss", "min"), warn=pytest.fail)
    restored = saved.restore(like)
    saved.close()
    assert restored is not None
    assert int(restored.step) == ended
    np.testing.assert_array_equal(restored.params["w"], np.tile(np.arange(4.0), 2) + ended)
