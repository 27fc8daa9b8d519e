"""Silences the tracebacks that Orbax prints before it raises the same error."""

import functools
import logging
import sys
import threading
from typing import Any


@functools.cache
def silence_threads_of_orbax() -> None:
    """Lets threads of Orbax and TensorStore fail without a traceback: the caller gets their error.

    For one full disk Orbax logs 550 lines, a traceback per thread. Its threads end with the error,
    and later callbacks of TensorStore find the event loop closed, after everything has returned.
    Hence this stays for the rest of the process; other threads and errors are printed as before.
    """
    in_callbacks, in_threads = sys.unraisablehook, threading.excepthook

    def from_callbacks(arguments: Any) -> None:
        if arguments.object or "Event loop is closed" not in str(arguments.exc_value):
            in_callbacks(arguments)

    def from_threads(arguments: Any) -> None:
        if "orbax" not in type(arguments.thread).__module__:
            in_threads(arguments)

    sys.unraisablehook, threading.excepthook = from_callbacks, from_threads
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
