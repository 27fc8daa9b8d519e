"""The metrics file stays consistent with the checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from train.metrics import MetricsFile, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two evaluations, four steps, and half a line."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", step=0)
    metrics.write(0, "validation", {"loss": 5.0}, seconds=0.5)
    for step in range(1, 5):
        metrics.write(step, "train", {"loss": 5.0 - step / 10}, seconds=float(step))
        if step == 2:
            metrics.write(step, "validation", {"loss": 4.8})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "split": "tr')
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize(("step", "lines"), [(0, 0), (1, 2), (2, 4), (4, 6)])
def test_going_on_from_a_step_drops_what_came_after_it(path: Path, step: int, lines: int):
    before = read_metrics(path)
    MetricsFile(path, step=step).close()
    assert read_metrics(path) == before[:lines]
    assert path.read_text().count("\n") == lines


def test_a_number_is_read_back_with_the_same_bits(tmp_path: Path):
    value = float(np.float32(1) / np.float32(3))
    metrics = MetricsFile(tmp_path / "m.jsonl", step=0)
    metrics.write(1, "train", {"loss": value})
    assert read_metrics(tmp_path / "m.jsonl")[0]["loss"] == value
    metrics.close()


def test_clock_quantities_are_apart(path: Path):
    line = json.loads(path.read_text().splitlines()[1])
    assert line.pop("wall") == {"seconds": 1.0}
    assert line == {"step": 1, "split": "train", "loss": 4.9}
