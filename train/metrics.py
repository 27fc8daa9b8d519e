"""Metrics as JSON lines, in step with the checkpoints: a resumed run has each line once."""

import json
import math
import os
from pathlib import Path
from typing import Any

from train.files import write_atomically


class MetricsFile:
    """Appends one JSON object a line, flushed at once.

    A line has `step`, `split` ("train" or "validation") and numbers; a number is written so that
    reading it gives the same bits, and as null if it is infinite or NaN, which JSON lacks.
    Quantities of the clock are under `wall`, apart from those that
    two equal runs share.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        """Opens the file, and drops the lines after a step: the run repeats them.

        Args:
            path: the file; made if it is missing.
            step: the step that the run goes on from; 0 drops every line.
        """
        kept = [line for line in read_metrics(path) if step > 0 and line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, split: str, metrics: dict[str, float], **wall: float) -> None:
        """Appends a line; `wall` are quantities of the clock, such as `seconds`."""
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        record = {"step": step, "split": split, **finite, "wall": wall}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on disk; for a checkpoint that is about to be written."""
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
