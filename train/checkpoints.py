"""Checkpoints by Orbax, verified by checksum: a damaged one is never loaded.

Orbax commits a step's folder atomically, but loads flipped bits without a word. So every finished
step gets an `INTEGRITY.json` (size and CRC-32 of each of its files), and opening the folder sets
aside, with a warning, each step that does not match it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.errors import BadInput
from train.integrity import damage, seal


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one of the lowest validation loss."""

    def __init__(self, directory: Path, *, keep: int, warn: Callable[[str], None]) -> None:
        """Opens a folder of checkpoints, and sets aside what is damaged in it.

        Args:
            directory: one folder a step; made if it is missing.
            keep: newest checkpoints kept.
            warn: gets a line for every checkpoint that was set aside.
        """
        self._directory = directory.absolute()
        _set_damaged_aside(self._directory, warn)
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], n=1, reverse=True)
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory), preservation_policy=kept, cleanup_tmp_directories=True
        )

    def restore(self, state: Any) -> Any | None:
        """Returns the newest state, laid out like the given one, or None if there is none.

        Raises:
            BadInput: a checkpoint of another model or optimizer than this program builds.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        try:
            return self._checkpointer.load(latest.step, like)
        except Exception as error:  # the files are intact, so it is the structure
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise BadInput(
                f"checkpoint {self._directory / str(latest.step)} does not fit this program, use "
                f"another --run-dir: {cause}"
            ) from error

    def save(self, step: int, state: Any, *, loss: float) -> None:
        """Writes a checkpoint and its checksums; back when both are on disk.

        Args:
            step: steps done; becomes the folder's name.
            state: pytree of arrays.
            loss: validation loss, by which the best checkpoint is kept.
        """
        self._checkpointer.save(step, state, force=True, metrics={"loss": loss})
        seal(self._directory / str(step))

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._checkpointer.close()


def _set_damaged_aside(directory: Path, warn: Callable[[str], None]) -> None:
    """Moves damaged steps to a folder beside, where Orbax does not see them."""
    steps = [p for p in directory.iterdir() if p.name.isdecimal()] if directory.is_dir() else []
    for folder in sorted(steps, key=lambda p: int(p.name)):
        wrong = damage(folder)
        if wrong is None:
            continue
        aside = directory.with_name(f"{directory.name}-damaged")
        aside.mkdir(exist_ok=True)
        copies = len(list(aside.glob(f"{folder.name}-*")))
        target = aside / f"{folder.name}-{copies + 1}"
        shutil.move(folder, target)
        warn(f"checkpoint {folder} is damaged ({wrong}); moved to {target} and not used")
