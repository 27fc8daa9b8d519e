"""Signals that end a run: the current step is finished and saved, then the process exits."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTICE = b"\nfinishing the step and saving; a second signal exits immediately\n"


class Interruption:
    """Records the signals that end a run, while active.

    They are SIGINT (Control-C), SIGTERM (a scheduler reclaims the machine) and SIGHUP (a terminal
    or connection is lost), which stays ignored under `nohup`. A second signal of the same kind has
    its usual effect: it ends the process.

    Several processes must stop after the same step. There JAX's own preemption service receives
    SIGTERM and agrees with the other processes on a step; SIGINT keeps its usual effect.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before = {}

    def requested(self, step: int) -> signal.Signals | None:
        """The signal that ends the run after this step, if any; must be called after every step."""
        if jax.distributed.is_initialized():
            agreed = multihost_utils.reached_preemption_sync_point(step)
            return signal.SIGTERM if agreed else None
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: records it, and restores the handler from before."""
        del frame
        self._received = signal.Signals(number)
        signal.signal(number, self._before[self._received])
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, _NOTICE)  # unlike print, safe at any point of the program

    def __enter__(self) -> Self:
        # In Python only the main thread can handle signals.
        main = threading.current_thread() is threading.main_thread()
        if main and not jax.distributed.is_initialized():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            if before[signal.SIGHUP] is signal.SIG_IGN:  # under `nohup`
                del before[signal.SIGHUP]
            self._before = before
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
