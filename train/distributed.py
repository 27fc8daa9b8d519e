"""Several processes that train together: how they meet, who writes, and who reads what.

Every process runs the same program on its own devices; `jax.devices()` are those of all. Process 0
writes the run directory, which all of them read; checkpoints are written by all together. So the
run directory has to be on a file system that they share.
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

_MESSAGE = 2000  # bytes of an error that the other processes get to see


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which processes train together; by default this one trains alone."""

    discover: bool = False
    """Whatever started the processes says it all in the environment: SLURM, Open MPI, Kubernetes
    (GKE), a TPU pod."""

    coordinator: str | None = None
    """HOST:PORT that process 0 listens on, where the environment says nothing."""

    count: int | None = None
    """Number of processes; with coordinator."""

    index: int | None = None
    """Which of them this one is, from 0; with coordinator."""

    def __post_init__(self) -> None:
        given = [x is not None for x in (self.coordinator, self.count, self.index)]
        require(
            all(given) or not any(given),
            f"processes: coordinator={self.coordinator}, count={self.count} and index={self.index} "
            "belong together; give all three, or --processes.discover",
        )
        require(
            not (self.discover and any(given)),
            "processes.discover finds coordinator, count and index by itself; leave those out",
        )
        if self.count is not None and self.index is not None:
            require(
                0 <= self.index < self.count,
                f"processes.index={self.index} must lie in 0 .. processes.count - 1 = "
                f"{self.count - 1}",
            )


def join(processes: Processes) -> None:
    """Meets the other processes; to be called before any device is used. Once is enough.

    Raises:
        BadInput: there is nothing to be discovered, or it is too late.
    """
    if jax.distributed.is_initialized():
        return
    try:
        if processes.discover:
            jax.distributed.initialize()
        elif processes.coordinator is not None:
            jax.distributed.initialize(processes.coordinator, processes.count, processes.index)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"processes cannot meet: {one_line(error)}. Outside of SLURM, Open MPI, GKE and TPU "
            "pods give --processes.coordinator HOST:PORT --processes.count N --processes.index I"
        ) from error


def leads() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Does something on every process; an error on one of them is an error on all.

    Without this the others would wait for the one that failed.

    Raises:
        BadInput: what the action raised, here or elsewhere.
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
    """Does something on process 0 once all have come here; the others wait until it is done."""
    together(lambda: None)
    together(lambda: action() if leads() else None)


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[Path]:
    """A folder to write to: the given one on process 0, elsewhere one that nobody keeps."""
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
        f"{name} is not the same for all processes ({values}); it has to be on a file system that "
        "they share",
    )


def own_batches(examples: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """This process's part of every batch of `batch_size` examples; what is over is left out.

    The parts follow each other as the processes' devices do on a mesh, so that a row is on the same
    device however many processes there are.

    Example:
        >>> [batch.tolist() for batch in own_batches(grain.MapDataset.range(8), 4)]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    own = examples.batch(batch_size // jax.process_count(), drop_remainder=True)
    return own[jax.process_index() :: jax.process_count()]


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that this process's devices have.

    Example:
        >>> own_rows(4)
        slice(0, 4, None)
    """
    own = batch_size // jax.process_count()
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)
