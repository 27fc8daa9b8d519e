"""Metrics as JSON lines, consistent with the checkpoints: a resumed run has each line once."""

import json
import math
import os
from pathlib import Path
from typing import Any

from train.files import write_atomically


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
        kept = [line for line in read_metrics(path) if step > 0 and line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, split: str, metrics: dict[str, float], **wall: float) -> None:
        """Appends a line; `wall` are measurements of time, such as `seconds`."""
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        record = {"step": step, "split": split, **finite, "wall": wall}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on disk; called before a checkpoint is written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; empty if there is none. A half-written last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
