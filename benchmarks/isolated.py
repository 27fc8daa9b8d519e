"""Parts of a long measurement, each in a process of its own: what one part breaks, others keep."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


class Part(NamedTuple):
    """How a part of a measurement ended."""

    part: str
    passed: float  # seconds
    ended: str  # "done", "skipped" and why, or what went wrong


def guarded(part: str, rows: Iterable[NamedTuple]) -> Iterator[NamedTuple]:
    """The rows and, if there is an error, a `Part` that names it instead of the rows that lack."""
    start = time.perf_counter()
    try:
        yield from rows
    except Exception as error:  # whatever it is, it is a result, and the next rows are, too
        traceback.print_exc()
        yield Part(part, time.perf_counter() - start, described(error))


def described(error: BaseException) -> str:
    """The type of an error and the start of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def isolated(
    function: Callable[..., Iterable[Any]], arguments: tuple, seconds: float
) -> Iterator[Any]:
    """The rows of a function that runs in another process, and last, as a string, how it ended.

    The process gets its own memory on a GPU, and gives it back. It may crash. Like all processes
    that it starts, it is killed when its time is up, and when the caller ends.

    Args:
        function: importable by name; its rows can be pickled, and are not strings.
        arguments: its positional arguments.
        seconds: for the process, including its start.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    end = time.monotonic() + seconds
    row = None
    try:
        while not isinstance(row, str):
            if receiver.poll(max(0.0, end - time.monotonic())):
                row = receiver.recv()
            else:
                row = f"stopped after {seconds:.0f} s"
            yield row
    except EOFError:
        process.join()
        yield f"crashed with exit code {process.exitcode}"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # pyright: ignore[reportArgumentType]
        process.kill()
        process.join()


def _send(sender: Connection, function: Callable[..., Iterable[Any]], arguments: tuple) -> None:
    """Sends rows, and then how they ended."""
    os.setsid()  # what this process starts ends with it
    try:
        for row in function(*arguments):
            sender.send(row)
        sender.send("done")
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        sender.send(described(error))
