"""Training with several processes: how they connect, which one writes, and what each one reads.

Every process runs the same program on its own devices; `jax.devices()` lists the devices of all.
Process 0 writes the run directory and all processes read it; all write checkpoints together. So the
run directory must be on a file system that they share.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from train.errors import BadInput, one_line, require

T = TypeVar("T")

_MESSAGE = 2000  # bytes of an error message that the other processes receive
_REASON = 150  # characters of an error of JAX, whose messages are long


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that train together; by default this one trains alone."""

    discover: bool = False
    """Find the processes through the environment that launched them: SLURM, Open MPI, Kubernetes
    (GKE) or a TPU pod."""

    coordinator: str | None = None
    """HOST:PORT that process 0 listens on, if the environment does not provide it."""

    count: int | None = None
    """Number of processes; needs coordinator."""

    index: int | None = None
    """Index of this process, from 0; needs coordinator."""

    def __post_init__(self) -> None:
        given = [x is not None for x in (self.coordinator, self.count, self.index)]
        require(
            all(given) or not any(given),
            f"processes: coordinator={self.coordinator}, count={self.count} and index={self.index} "
            "belong together; give all three, or --processes.discover",
        )
        require(
            not (self.discover and any(given)),
            "processes.discover finds coordinator, count and index by itself; omit those",
        )
        if self.count is not None and self.index is not None:
            require(
                0 <= self.index < self.count,
                f"processes.index={self.index} must be in 0 .. processes.count - 1 = "
                f"{self.count - 1}",
            )


def join(processes: Processes) -> None:
    """Connects to the other processes. Call it before any device is used; later calls do nothing.

    Raises:
        BadInput: the environment names no processes, or a device was used already.
    """
    if joined():
        return
    try:
        if processes.discover:
            jax.distributed.initialize()
        elif processes.coordinator is not None:
            jax.distributed.initialize(processes.coordinator, processes.count, processes.index)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"processes cannot connect: {one_line(error)}. Outside of SLURM, Open MPI, GKE and TPU "
            "pods give --processes.coordinator HOST:PORT --processes.count N --processes.index I"
        ) from error


def joined() -> bool:
    """Whether this process trains with others."""
    return jax.distributed.is_initialized()


def lost(error: Exception) -> str:
    r"""What an error of JAX may mean while several processes train: a message in one line.

    Example:
        >>> lost(RuntimeError("Gloo all-reduce failed:\n closed by peer"))
        'JAX failed (Gloo all-reduce failed: closed by peer); if another process ended, start all
        of them again: the same command continues'
    """
    return (
        f"JAX failed ({one_line(error)[:_REASON]}); if another process ended, start all of them "
        "again: the same command continues"
    )


def leads() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Runs an action on every process; an error on one process is raised on all of them.

    Otherwise the other processes would wait for the failed one.

    Raises:
        BadInput: the action failed on another process. An error on this one is raised unchanged.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    text = one_line(error or "").encode()[:_MESSAGE] if error else b""
    messages = np.frombuffer(text.ljust(_MESSAGE, b"\0"), np.uint8)
    for index, message in enumerate(multihost_utils.process_allgather(messages)):
        told = bytes(message).rstrip(b"\0").decode(errors="replace")
        if told and error is None:
            raise BadInput(f"process {index}: {told}")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def first_alone(action: Callable[[], Any]) -> None:
    """Runs an action on process 0 once all processes are here; the others wait for it."""
    together(lambda: None)
    together(lambda: action() if leads() else None)


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[Path]:
    """A folder to write to: the given one on process 0, a temporary one elsewhere."""
    if leads():
        yield directory
    else:
        with tempfile.TemporaryDirectory() as unread:
            yield Path(unread)


def require_shared(name: str, value: int) -> None:
    """Raises `BadInput` unless all processes see the same value."""
    if jax.process_count() == 1:
        return
    values = np.atleast_1d(multihost_utils.process_allgather(np.int32(value))).tolist()
    require(
        len(set(values)) == 1,
        f"{name} is not the same for all processes ({values}); it must be on a file system that "
        "they share",
    )


def own_batches(examples: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """This process's part of every batch of `batch_size` examples; an incomplete batch is dropped.

    The parts are in the order of the processes' devices on a mesh, so that a row is on the same
    device for any number of processes.

    Example:
        >>> [batch.tolist() for batch in own_batches(grain.MapDataset.range(8), 4)]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    own = examples.batch(batch_size // jax.process_count(), drop_remainder=True)
    return own[jax.process_index() :: jax.process_count()]


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that are on this process's devices.

    Example:
        >>> own_rows(4)
        slice(0, 4, None)
    """
    own = batch_size // jax.process_count()
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)
