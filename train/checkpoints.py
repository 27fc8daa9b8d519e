"""Checkpoints written by Orbax and verified by checksum: a damaged one is never loaded.

Orbax writes in the background and commits atomically, but it loads flipped bits silently. So a
checkpoint is made in three steps, and only the last one gives it its name, a plain number:

1. All processes write `STEP.unsealed` together, through Orbax.
2. Process 0 adds `evaluation.json`, then `INTEGRITY.json`: size and checksum of every file.
3. Process 0 renames the folder to `STEP`, and only then removes older checkpoints that are no
   longer kept.

A kill before the rename leaves the older checkpoints untouched, and a folder that is never loaded;
the next start removes it.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from train.errors import BadInput, TrainingStopped, one_line
from train.integrity import damage, seal
from train.step import State

Best = tuple[str, Literal["min", "max"]]  # name of a metric, and which direction is better
Which = Literal["best", "newest"]

EVALUATION = "evaluation.json"
_UNSEALED, _REMOVED = ".unsealed", ".removed"
# The model's fields are stored apart, to be read without the optimizer's state. The names are those
# on disk; `model_state` keeps the one that it had in earlier releases.
_ON_DISK = {"params": "params", "model_state": "rest", "average": "average"}


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one with the best evaluation.

    With several processes, each has its own instance on a shared file system, and all call the same
    methods in the same order.
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
        self._leads = jax.process_index() == 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        if self._leads:
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.iterdir():
                if {_UNSEALED, _REMOVED} & set(leftover.suffixes):
                    shutil.rmtree(leftover)

    def restore(self, state: State) -> State | None:
        """Returns the newest intact state, sharded like the given one, or None if there is none.

        Newer checkpoints that are damaged are set aside with a warning. The buffers of the given
        state are freed before loading, so that resuming needs no more memory than starting.

        Raises:
            BadInput: the checkpoint belongs to another model or optimizer.
        """
        self.wait()
        newest = self._newest_intact() if self._leads else None
        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if newest is None else newest)))
        if step < 0:
            return None
        like = _shapes(_parts(state))
        for array in jax.tree.leaves(state):
            array.delete()
        parts = _load(self._directory / str(step), like)
        return state._replace(**parts["model"], **parts["training"])

    def save(self, step: int, state: State, metrics: Mapping[str, float] | None) -> None:
        """Starts to write a checkpoint; returns once the state's buffers may be reused.

        Args:
            step: steps done; becomes the folder's name.
            state: the state after that step.
            metrics: the evaluation at that step, which decides the best checkpoint; None if the
                step was not evaluated, so that it cannot be the best one.

        Raises:
            TrainingStopped: this checkpoint or the previous one could not be written.
        """
        self.wait()
        unsealed = self._directory / f"{step}{_UNSEALED}"
        try:
            parts = {name: _stored(part) for name, part in _parts(state).items()}
            written = ocp.save_checkpointables_async(str(unsealed), parts)
        except Exception as error:
            raise self._unwritten(step, error) from error
        commit = self._background.submit(self._commit, written.result, step, dict(metrics or {}))
        self._saving = step, commit

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk and sealed.

        Raises:
            TrainingStopped: it could not be written.
        """
        if self._saving is None:
            return
        (step, commit), self._saving = self._saving, None
        try:
            commit.result()
        except Exception as error:
            raise self._unwritten(step, error) from error

    def _unwritten(self, step: int, error: Exception) -> TrainingStopped:
        return TrainingStopped(
            f"the checkpoint of step {step} could not be written to {self._directory} "
            f"({one_line(_cause(error))}); the same command resumes from the one before"
        )

    def close(self) -> None:
        """Waits for the last checkpoint, and ends the thread that writes."""
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def _commit(
        self, written: Callable[[], object], step: int, metrics: Mapping[str, float]
    ) -> None:
        """Waits for Orbax, seals, renames, then removes old checkpoints; runs on a thread."""
        written()
        if not self._leads:
            return
        unsealed = self._directory / f"{step}{_UNSEALED}"
        (unsealed / EVALUATION).write_text(json.dumps(metrics))
        seal(unsealed)
        unsealed.rename(self._directory / str(step))
        steps = _steps(self._directory)
        kept = {*steps[-self._keep :], best_step(self._directory, self._best)}
        for old in set(steps) - kept:
            removed = self._directory / f"{old}{_REMOVED}"  # at no time a half-removed checkpoint
            (self._directory / str(old)).rename(removed)
            shutil.rmtree(removed)

    def _newest_intact(self) -> int | None:
        """The newest step that matches its checksums; newer ones are moved to a folder beside."""
        for step in reversed(_steps(self._directory)):
            folder = self._directory / str(step)
            wrong = damage(folder)
            if wrong is None:
                return step
            aside = self._directory.with_name(f"{self._directory.name}-damaged")
            aside.mkdir(exist_ok=True)
            target = aside / f"{step}-{len(list(aside.glob(f'{step}-*'))) + 1}"
            folder.rename(target)
            self._warn(f"checkpoint {folder} is damaged ({wrong}); moved to {target} and not used")
        return None


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
    directory = directory.absolute()  # Orbax takes no other
    steps = _steps(directory) if directory.is_dir() else []
    order = steps[::-1]
    first = best_step(directory, best) if which == "best" and steps else None
    for step in order if first is None else [first, *order]:
        folder = directory / str(step)
        wrong = damage(folder)
        if wrong is None:
            return step, _load(folder, {"model": model})["model"]
        warn(f"checkpoint {folder} is damaged ({wrong}); not used")
    raise BadInput(f"{directory} holds no intact checkpoint; train longer, or restore a copy of it")


def best_step(directory: Path, best: Best) -> int | None:
    """The step of the checkpoint with the best evaluation; the earliest if several are equal.

    Args:
        directory: holds one folder per checkpoint.
        best: name of a metric, and which direction is better.

    Returns:
        The step, or None if no checkpoint was evaluated.
    """
    name, direction = best
    values: dict[int, float] = {}
    for step in _steps(directory):
        try:
            values[step] = json.loads((directory / str(step) / EVALUATION).read_text())[name]
        except (OSError, ValueError, KeyError):
            continue  # not evaluated, or damaged
    choose = min if direction == "min" else max
    return choose(values, key=values.__getitem__, default=None)


def _steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


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
