"""Checkpoints written by Orbax and verified by checksum: a damaged one is never loaded.

Orbax writes in the background and commits atomically, but it loads flipped bits silently. So a
checkpoint is made in three steps, and only the last one gives it its name, a plain number:

1. All processes write `STEP.unsealed` together, through Orbax.
2. Process 0 adds `evaluations.json`, then `INTEGRITY.json`: size and checksum of every file.
3. Process 0 renames the folder to `STEP`, and only then removes older checkpoints that are no
   longer kept.

A kill before the rename leaves the older checkpoints untouched, and a folder that is never loaded;
the next start removes it.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from train.checkpoint_folder import (
    UNSEALED,
    Best,
    Evaluations,
    best_step,
    newest_intact,
    read_evaluations,
    reading,
    remove_checkpoint,
    remove_leftovers,
    steps,
    write_evaluations,
)
from train.errors import BadInput, MachineError, one_line
from train.files import writing
from train.integrity import damage, seal
from train.quiet import silence_threads_of_orbax
from train.step import State

Which = Literal["best", "newest"]

# The model's fields are stored apart, to be read without the optimizer's state. The names are those
# on disk; `model_state` keeps the one that it had in earlier releases.
_ON_DISK = {"params": "params", "model_state": "rest", "average": "average"}
_LONGEST_SAVE = 3600.0  # seconds


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one with the best evaluation.

    With several processes, each has its own instance on a shared file system, and all call the same
    methods in the same order.

    Attributes:
        evaluations: metrics by step, of the run so far. Every checkpoint holds them, so that they
            are known after resuming; the one at its step ranks the checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        best: Best,
        warn: Callable[[str], None],
    ) -> None:
        """Opens a folder of checkpoints, and removes what a killed process left unfinished.

        Args:
            directory: holds one folder per checkpoint; created if it is missing.
            keep: number of newest checkpoints to keep.
            best: name of a metric, and which direction is better.
            warn: called with one line for every checkpoint that is set aside.
        """
        self._directory, self._keep = directory.absolute(), keep
        self._best, self._warn = best, warn
        self.evaluations: Evaluations = {}
        self._leads = jax.process_index() == 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        if self._leads:
            with writing(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self._directory)
        silence_threads_of_orbax()

    def restore(self, state: State) -> State | None:
        """Returns the newest intact state, sharded like the given one, or None if there is none.

        Newer checkpoints that are damaged are set aside with a warning. The buffers of the given
        state are freed before loading, so that resuming needs no more memory than starting.

        Raises:
            BadInput: the checkpoint belongs to another model or optimizer.
        """
        self.wait()
        newest = None
        if self._leads:
            with writing(self._directory):
                newest = newest_intact(self._directory, self._warn)
        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if newest is None else newest)))
        if step < 0:
            return None
        like = _shapes(_parts(state))
        for array in jax.tree.leaves(state):
            array.delete()
        folder = self._directory / str(step)
        parts = _load(folder, like)
        self.evaluations = read_evaluations(folder)
        return state._replace(**parts["model"], **parts["training"])

    def save(self, step: int, state: State) -> None:
        """Starts to write a checkpoint; returns once the state's buffers may be reused.

        Args:
            step: steps done; becomes the folder's name.
            state: the state after that step.

        Raises:
            MachineError: this checkpoint or the previous one could not be written.
        """
        self.wait()
        unsealed = self._directory / f"{step}{UNSEALED}"
        try:
            if not self._directory.is_dir():  # Orbax would make it, without the run around it
                raise FileNotFoundError(f"{self._directory} was removed")
            parts = {name: _stored(part) for name, part in _parts(state).items()}
            with _saving():
                written = ocp.save_checkpointables_async(str(unsealed), parts)
        except Exception as error:
            raise self._unwritten(step, error) from error
        evaluations = dict(self.evaluations)
        commit = self._background.submit(self._commit, written.result, step, evaluations)
        self._saving = step, commit

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk and sealed.

        Raises:
            MachineError: it could not be written.
        """
        if self._saving is None:
            return
        (step, commit), self._saving = self._saving, None
        try:
            commit.result()
        except Exception as error:
            raise self._unwritten(step, error) from error

    def close(self) -> None:
        """Waits for the last checkpoint, and ends the thread that writes."""
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def _unwritten(self, step: int, error: Exception) -> MachineError:
        """The error to raise if a checkpoint could not be written."""
        return MachineError(
            f"the checkpoint of step {step} could not be written to {self._directory} "
            f"({one_line(_cause(error))})"
        )

    def _commit(
        self, written: Callable[[float], object], step: int, evaluations: Evaluations
    ) -> None:
        """Waits for Orbax, seals, renames, then removes old checkpoints; runs on a thread."""
        written(_LONGEST_SAVE)
        if not self._leads:
            return
        unsealed = self._directory / f"{step}{UNSEALED}"
        write_evaluations(unsealed, evaluations)
        seal(unsealed)
        unsealed.rename(self._directory / str(step))
        found = steps(self._directory)
        kept = {*found[-self._keep :], best_step(self._directory, self._best)}
        for old in set(found) - kept:
            remove_checkpoint(self._directory, old)


def load_model(
    directory: Path,
    model: dict[str, Any],
    *,
    which: Which,
    best: Best,
    warn: Callable[[str], None],
) -> tuple[int, dict[str, Any]]:
    """Reads the model of a run that may still be training; changes nothing.

    Args:
        directory: holds one folder per checkpoint.
        model: shapes and shardings of `params`, `model_state` and `average`, as in `State`.
        which: the checkpoint with the best evaluation, or the newest one. If the best one is
            missing or damaged, the newest is used.
        best: name of a metric, and which direction is better.
        warn: called with one line for every damaged checkpoint that is skipped.

    Returns:
        The step, and the model.

    Raises:
        BadInput: there is no intact checkpoint, or it belongs to another model.
    """
    directory = directory.absolute()  # Orbax requires it
    tried: set[int] = set()
    # A run that is training may remove a checkpoint after it was listed: list again after each.
    while left := [step for step in _in_order(directory, which, best) if step not in tried]:
        step, folder = left[0], directory / str(left[0])
        tried.add(step)
        with reading(folder) as held:
            if not held:
                continue
            wrong = damage(folder)
            if wrong is None:
                try:
                    return step, _load(folder, {"model": model})["model"]
                except BadInput:
                    if folder.is_dir():
                        raise
            elif folder.is_dir():
                warn(f"checkpoint {folder} is damaged ({wrong}); not used")
    raise BadInput(f"{directory} holds no intact checkpoint; train longer, or restore a copy of it")


def _in_order(directory: Path, which: Which, best: Best) -> list[int]:
    """The steps of the checkpoints, in the order in which to try them."""
    newest_first = steps(directory)[::-1]
    first = best_step(directory, best) if which == "best" else None
    return newest_first if first is None else [first, *newest_first]


def _parts(state: State) -> dict[str, Any]:
    """A state as the two trees of a checkpoint."""
    fields = state._asdict()
    model = {name: fields.pop(name) for name in _ON_DISK}
    return {"model": model, "training": fields}


def _stored(part: dict[str, Any]) -> dict[str, Any]:
    """One tree of a checkpoint under the names that it has on disk."""
    return {_ON_DISK.get(name, name): tree for name, tree in part.items()}


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_stored`."""
    names = {name: field for field, name in _ON_DISK.items()}
    return {names.get(name, name): tree for name, tree in stored.items()}


def _shapes(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _saving() -> ocp.Context:
    """Options of Orbax for writing.

    A folder that cannot be made in the background is waited for without end, so folders are made
    before. Time limits are those of the wall clock, which may jump: a long one for one process,
    whose wait is limited by `_LONGEST_SAVE`. Several processes also wait for each other.
    """
    context = ocp.Context()
    context.asynchronous.create_directories_asynchronously = False
    if jax.process_count() == 1:
        context.asynchronous.timeout_secs = 10**9
    return context


def _load(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Reads parts of an intact checkpoint, sharded like the given shapes."""
    try:
        # One by one: Orbax leaves coroutines that nobody awaits if one of several fails.
        return {
            name: _fields(ocp.load_checkpointables(str(folder), {name: _stored(part)})[name])
            for name, part in parts.items()
        }
    except Exception as error:  # the files are intact, so it is the structure
        raise BadInput(
            f"checkpoint {folder} does not fit this program; use another --run-dir: {_cause(error)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
