"""Checkpoints by Orbax, verified by checksum: a damaged one is never loaded.

Orbax commits a step's folder atomically, but loads flipped bits without a word. So every finished
step gets an `INTEGRITY.json` (size and CRC-32 of each of its files), and opening the folder sets
aside, with a warning, each step that does not match it.
"""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.errors import BadInput
from train.files import write_atomically

INTEGRITY = "INTEGRITY.json"
_CHUNK = 1 << 22  # bytes read at once for a checksum


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
        folder = self._directory / str(step)
        write_atomically(folder / INTEGRITY, json.dumps(_checksums(folder), indent=1))

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._checkpointer.close()


def damage(folder: Path) -> str | None:
    """Says what is wrong with a checkpoint's files, or None if all match their checksums."""
    try:
        expected = json.loads((folder / INTEGRITY).read_text())
    except FileNotFoundError:
        return f"{INTEGRITY} is missing: the run ended while it was written"
    except ValueError:
        return f"{INTEGRITY} is unreadable"
    found = _checksums(folder)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name][0] != expected[name][0]:
            return f"{name} has {found[name][0]} bytes instead of {expected[name][0]}"
        if found[name] != expected[name]:
            return f"the checksum of {name} is wrong"
    return None


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


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / INTEGRITY)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, _crc32(p)] for p in files}


def _crc32(path: Path) -> int:
    """CRC-32 of a file's content."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
