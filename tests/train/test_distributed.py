"""Several processes: their options, and that they train like one process."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.disturbed import without_logs
from train import distributed, run_directory
from train.distributed import Processes
from train.errors import BadInput
from train.metrics import read_metrics

OPTIONS = (
    "lm --steps 20 --evaluate-every 10 --keep-checkpoints 2 --batch-size 8 --mesh data=2,fsdp=-1 "
    "--data.sequence-length 16 --data.evaluation-sequences 32 --model.hidden-size 16 "
    "--model.intermediate-size 32 --model.num-hidden-layers 2 --model.num-attention-heads 2 "
    "--model.num-key-value-heads 1 --model.head-dim 8 --sample.length 8 --optimizer.threshold 0.02"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 2, "index": 0}, "belong together; give all three, or --processes.discover"),
        ({"discover": True, "coordinator": "a:1", "count": 2, "index": 0}, "omit those"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, r"must be in 0 .. processes.count - 1"),
    ],
)
def test_processes_that_contradict_themselves_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        Processes(**fields)


def test_a_process_alone_meets_nobody():
    distributed.join(Processes())
    assert distributed.leads()
    assert distributed.together(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        distributed.first_alone(lambda: 1 // 0)
    distributed.require_shared("nothing", 1)


def start(run_dir: Path, text: Path, repository: Path, devices: int, *options: str) -> Any:
    where = ["--data.path", str(text), "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [sys.executable, "-m", "train", *OPTIONS.split(), *options, *where],
        cwd=run_dir.parent,
        env=os.environ
        | {
            "PYTHONPATH": str(repository),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(run_dir.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: Any) -> str:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out


def start_two(
    run_dir: Path, text: Path, repository: Path, *options: str, devices: int = 4
) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = ["--processes.coordinator", address, "--processes.count", "2", "--processes.index"]
    return [start(run_dir, text, repository, devices, *options, *told, str(i)) for i in range(2)]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_of_four_devices_train_as_one_of_eight(
    tmp_path: Path, repository: Path, text_file: Path
):
    alone = start(tmp_path / "alone", text_file, repository, 8)
    shown = [ended(process) for process in start_two(tmp_path / "two", text_file, repository)]
    assert "validation loss" in shown[0]
    assert "validation loss" not in shown[1]  # Gloo prints its connections
    ended(alone)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-6)
    assert len(losses(tmp_path / "two")) == 23
    assert (tmp_path / "two" / "sample.txt").exists()

    # One process resumes from the last but one checkpoint of the two processes.
    for name in ("checkpoints/20", "result.json"):
        path = tmp_path / "two" / name
        path.rename(tmp_path / path.name)
    with run_directory.locked(tmp_path / "two"):  # an error of process 0 also ends the other
        for index, process in enumerate(start_two(tmp_path / "two", text_file, repository)):
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 2, errors
            assert "another process is training in" in errors
            assert ("process 0: " in errors) == (index == 1)
    assert "resuming after step 10" in ended(start(tmp_path / "two", text_file, repository, 8))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=1e-6)


@pytest.mark.slow
def test_a_process_whose_partner_is_killed_ends_in_one_line(
    tmp_path: Path, repository: Path, text_file: Path
):
    # Between two saves: in one, the survivor waits until JAX ends it. Without process 0, the
    # coordinator, JAX ends the others at once.
    endless = ["--steps", "1000000", "--evaluate-every", "1000000"]
    processes = start_two(tmp_path / "run", text_file, repository, *endless, devices=1)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not log.exists() or '"train"' not in log.read_text():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].kill()
    processes[1].communicate()
    _, errors = processes[0].communicate(timeout=300)
    assert processes[0].returncode == 1
    assert without_logs(errors).startswith("stopped: JAX failed (")
    assert without_logs(errors).count("\n") == 1
