"""Checkpoints by Orbax, verified by checksum: a damaged one is never loaded.

Orbax writes in the background and commits atomically, but loads flipped bits without a word. So a
checkpoint becomes one in three steps, and its name, a plain number, appears with the last:

1. Orbax writes `STEP.unsealed`, all processes together.
2. Process 0 adds `evaluation.json`, then `INTEGRITY.json`: size and checksum of every file.
3. Process 0 renames the folder to `STEP`, and only then removes the checkpoints of before that are
   no longer kept.

A kill before the rename leaves the checkpoints of before as they were and a folder that nobody
trusts; the next start removes it.
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

Best = tuple[str, Literal["min", "max"]]  # name of a metric, and whether less is better or more
Which = Literal["best", "newest"]

EVALUATION = "evaluation.json"
_UNSEALED, _REMOVED = ".unsealed", ".removed"
_MODEL = ("params", "rest", "average")  # apart: readable without the optimizer's state


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one of the best evaluation.

    With several processes each of them has one, on a file system that they share, and calls the
    same methods in the same order.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        best: Best,
        warn: Callable[[str], None],
    ) -> None:
        """Opens a folder of checkpoints, and removes what a killed process left half-done.

        Args:
            directory: one folder a step; made if it is missing.
            keep: newest checkpoints kept.
            best: name of a metric, and whether less or more of it is better.
            warn: gets a line for every checkpoint that was set aside.
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
        """Returns the newest intact state, laid out like the given one, or None if there is none.

        Damaged checkpoints that are newer are set aside with a warning. If there is a state, the
        buffers of the given one are freed first: going on takes no more memory than beginning.

        Raises:
            BadInput: a checkpoint of another model or optimizer than this program builds.
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
        """Starts to write a checkpoint; back when the state's buffers may be used again.

        Args:
            step: steps done; becomes the folder's name.
            state: the state after that step.
            metrics: the evaluation at that step, by which the best checkpoint is kept; None: it
                was not evaluated, so it is not the best one.

        Raises:
            TrainingStopped: this checkpoint or the one before could not be written.
        """
        self.wait()
        unsealed = self._directory / f"{step}{_UNSEALED}"
        try:
            written = ocp.save_checkpointables_async(str(unsealed), _parts(state))
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
        """Waits for Orbax, seals, renames and only then removes old checkpoints; on a thread."""
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
        directory: one folder a step.
        model: shapes and layouts, `params`, `rest` and `average` as in `State`.
        which: the best evaluation, or the newest checkpoint. The best may be damaged, or not be
            there: then the newest.
        best: name of a metric, and whether less or more of it is better.
        warn: gets a line for every damaged checkpoint that was passed over.

    Returns:
        The step, and the model.

    Raises:
        BadInput: there is no intact checkpoint, or it is one of another model.
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
    """The step of a folder of checkpoints with the best evaluation, the first of equal ones.

    Args:
        directory: one folder a step.
        best: name of a metric, and whether less or more of it is better.

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
    """The steps that there are checkpoints of, in order."""
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def _parts(state: State) -> dict[str, Any]:
    """A state as the two trees that a checkpoint consists of."""
    fields = state._asdict()
    return {"model": {name: fields.pop(name) for name in _MODEL}, "training": fields}


def _shapes(tree: Any) -> Any:
    """Shapes, types and layouts of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _load(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Reads parts of an intact checkpoint, laid out like the given shapes."""
    try:
        # One by one: Orbax leaves coroutines that nobody awaits if one of several fails.
        return {
            name: ocp.load_checkpointables(str(folder), {name: part})[name]
            for name, part in parts.items()
        }
    except Exception as error:  # the files are intact, so it is the structure
        raise BadInput(
            f"checkpoint {folder} does not fit this program, use another --run-dir: {_cause(error)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
