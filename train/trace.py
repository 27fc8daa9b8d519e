"""A JAX trace of a few steps: a timeline of devices and host."""

from pathlib import Path
from typing import Any

import jax

STEPS = 3  # enough to see whole steps, few enough to open the trace


class Trace:
    """Traces `STEPS` steps of a process, after two steps that include compilation."""

    def __init__(self, folder: Path | None, *, step: int) -> None:
        """Prepares a trace.

        Args:
            folder: the folder to write to, for TensorBoard's profile page or ui.perfetto.dev; None:
                there is no trace.
            step: the step that the process starts from.
        """
        self._folder, self._first = folder, step + 2
        self._running = False

    def step(self, step: int, values: Any) -> None:
        """Starts or ends the trace at the right steps.

        Args:
            step: steps done.
            values: results of the last step; awaited, so that the trace has all of it.
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
        """Ends the trace, also of a run that ended early."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
