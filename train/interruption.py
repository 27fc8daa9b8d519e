"""Signals that end a run: the step is finished, its checkpoint written, and the process ends."""

import os
import signal
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nfinishing the step and saving; once more ends at once\n"


class Interruption:
    """Notes SIGINT (Control-C) and SIGTERM (a scheduler takes the machine) while it is open.

    The second signal of a kind does what it would do without this: it ends the process.

    Several processes have to stop after the same step. There JAX's own preemption service takes
    SIGTERM, tells the other processes and agrees with them on a step; SIGINT is left as it is.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before = {}

    def requested(self, step: int) -> signal.Signals | None:
        """The signal that the run should end for after this step; to be asked after every step."""
        if jax.distributed.is_initialized():
            agreed = multihost_utils.reached_preemption_sync_point(step)
            return signal.SIGTERM if agreed else None
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: notes it, and lets the next one through."""
        del frame
        self._received = signal.Signals(number)
        signal.signal(number, self._before[self._received])
        os.write(2, _NOTICE)  # unlike print, safe wherever the signal came in

    def __enter__(self) -> Self:
        # Python lets only the main thread take signals.
        main = threading.current_thread() is threading.main_thread()
        if main and not jax.distributed.is_initialized():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
