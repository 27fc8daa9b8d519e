"""A JAX trace of a few steps: what device and host did, microsecond by microsecond."""

from pathlib import Path
from typing import Any

import jax

STEPS = 3  # long enough to see a step begin and end, small enough to open


class Trace:
    """Traces `STEPS` steps of a process; the two before them, with compilation, are left out."""

    def __init__(self, folder: Path | None, *, step: int) -> None:
        """Prepares a trace.

        Args:
            folder: where it goes, for TensorBoard's profile page or ui.perfetto.dev; None: none.
            step: the step that the process goes on from.
        """
        self._folder, self._first = folder, step + 2
        self._running = False

    def step(self, step: int, values: Any) -> None:
        """Starts or ends the trace if it is time.

        Args:
            step: steps done.
            values: results of the last step; waited for, so that all of it is in the trace.
        """
        if self._folder is None or step not in (self._first, self._first + STEPS):
            return
        jax.block_until_ready(values)
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        else:
            self.close()

    def close(self) -> None:
        """Ends the trace of a run that is shorter."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
