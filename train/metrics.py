"""Metrics as JSON lines, consistent with the checkpoints: a resumed run has each line once."""

import json
import math
import os
from pathlib import Path
from typing import Any

from train.files import write_atomically, writing


class MetricsFile:
    """Appends one JSON object per line and flushes it immediately.

    A line has `step`, `split` ("train" or "validation") and numbers, which are written without
    rounding. Infinities and NaN, which JSON lacks, are written as null. Measurements of time are
    under `wall`: two equal runs share all other numbers.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        """Opens the file and drops the lines after `step`, which the run writes again.

        Args:
            path: the file; created if it is missing.
            step: the step that the run resumes from; 0 drops every line.
        """
        self._path = path
        kept = [line for line in read_metrics(path) if step > 0 and line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, metrics: dict[str, float], **wall: float) -> None:
        """Appends a line; `wall` are measurements of time, such as `seconds`."""
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        record = {"step": step, "split": split, **finite, "wall": wall}
        with writing(self._path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on disk; called before a checkpoint is written."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; empty if there is none. Damaged lines are left out."""
    if not path.is_file():
        return []
    records = [_record(line) for line in path.read_bytes().splitlines()]
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """One line as an object with a step and numbers, or None if it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    values = [x for name, x in record.items() if name not in ("step", "split", "wall")]
    numbers = all(x is None or type(x) in (int, float) for x in values)
    known = record.get("split") in ("train", "validation") and isinstance(
        record.get("wall", {}), dict
    )
    return record if numbers and known else None


def validations(path: Path) -> dict[int, dict[str, float]]:
    """The evaluations in a metrics file by step."""
    found = [line for line in read_metrics(path) if line["split"] == "validation"]
    return {
        line["step"]: {k: x for k, x in line.items() if k not in ("step", "split", "wall")}
        for line in found
        if "loss" in line and None not in line.values()
    }
