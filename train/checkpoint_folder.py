"""The folder of a run's checkpoints: names, evaluations and leftovers, without their arrays.

A checkpoint is a folder whose name is its step. `STEP.unsealed` is being written, and
`STEP.removed` is being removed; both are leftovers if no process is at work.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from train.files import write_atomically
from train.integrity import damage, read_json

Best = tuple[str, Literal["min", "max"]]  # name of a metric, and which direction is better
Evaluations = dict[int, dict[str, float]]  # metrics by step

UNSEALED, REMOVED = ".unsealed", ".removed"
EVALUATIONS = "evaluations.json"  # in a checkpoint: all evaluations of the run up to its step
_EVALUATION = "evaluation.json"  # in a checkpoint of an earlier release: the one at its step
_LEFTOVER = re.compile(r"\d+\.(unsealed|removed)(\..*)?")
_LARGEST_STEP = 2**31 - 1


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    found = [int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,9}", name)]
    return sorted(step for step in found if step <= _LARGEST_STEP)


def best_step(directory: Path, best: Best) -> int | None:
    """The step of the checkpoint with the best evaluation; the earliest if several are equal.

    Args:
        directory: holds one folder per checkpoint.
        best: name of a metric, and which direction is better.

    Returns:
        The step, or None if no checkpoint was evaluated.
    """
    name, direction = best
    found = {
        step: read_evaluations(directory / str(step)).get(step, {}) for step in steps(directory)
    }
    return best_evaluation({k: v for k, v in found.items() if name in v}, name, direction)


def best_evaluation(evaluations: Evaluations, name: str, direction: str) -> int | None:
    """The step of the best evaluation, the earliest of equal ones; None if there is none.

    Example:
        >>> best_evaluation({0: {"loss": 3.0}, 2: {"loss": 1.0}, 4: {"loss": 1.0}}, "loss", "min")
        2
    """
    choose = min if direction == "min" else max
    return choose(sorted(evaluations), key=lambda step: evaluations[step][name], default=None)


def write_evaluations(folder: Path, evaluations: Mapping[int, Mapping[str, float]]) -> None:
    """Writes the evaluations of a run into a checkpoint that is not sealed yet."""
    write_atomically(folder / EVALUATIONS, json.dumps(evaluations))


def read_evaluations(folder: Path) -> Evaluations:
    """The evaluations in a checkpoint; empty if it is damaged or was never evaluated."""
    try:
        stored = read_json(folder / EVALUATIONS, dict)
    except FileNotFoundError:
        stored = {folder.name: _json_or_empty(folder / _EVALUATION)}
    except (OSError, ValueError):
        return {}
    return {
        int(step): {name: float(x) for name, x in metrics.items() if type(x) in (int, float)}
        for step, metrics in stored.items()
        if step.isdecimal() and isinstance(metrics, dict)
    }


def remove(path: Path) -> None:
    """Removes a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[bool]:
    """Keeps a checkpoint from being removed; yields False if it is gone or is being removed.

    A kill releases it. It has no effect where folders cannot be locked (Windows, some network
    file systems).
    """
    with _locked(folder, "LOCK_SH") as held:
        yield held


def remove_checkpoint(directory: Path, step: int) -> None:
    """Removes a checkpoint that nobody reads; at no time is half of one left under its name."""
    removed = directory / f"{step}{REMOVED}"
    with _locked(directory / str(step), "LOCK_EX") as held:
        if held:
            remove(removed)
            (directory / str(step)).rename(removed)
            remove(removed)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed process left unfinished."""
    for path in list(directory.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            remove(path)


def newest_intact(directory: Path, warn: Callable[[str], None]) -> int | None:
    """The newest step whose checksums match; newer checkpoints are moved to a folder next to it."""
    for step in reversed(steps(directory)):
        folder = directory / str(step)
        wrong = damage(folder)
        if wrong is None:
            return step
        aside = directory.with_name(f"{directory.name}-damaged")
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}-{len(list(aside.glob(f'{step}-*'))) + 1}"
        folder.rename(target)
        warn(f"checkpoint {folder} is damaged ({wrong}); moved to {target} and not used")
    return None


@contextlib.contextmanager
def _locked(folder: Path, kind: Literal["LOCK_SH", "LOCK_EX"]) -> Iterator[bool]:
    """Locks a folder; yields False if it is gone or another lock forbids it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield folder.is_dir()
        return
    with contextlib.ExitStack() as stack:
        held = True
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError, BlockingIOError):
            held = False
        except OSError:  # a file system without locks
            held = folder.is_dir()
        yield held


def _json_or_empty(path: Path) -> dict[str, float]:
    """The object in a JSON file, or an empty one if there is none."""
    try:
        return read_json(path, dict)
    except (OSError, ValueError):
        return {}
