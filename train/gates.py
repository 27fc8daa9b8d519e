"""Which matrices an optimizer's gate was open for: one row of bits per step, and their picture."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train.files import replacing, write_atomically, writing
from train.integrity import read_json

_COLUMNS = 600  # of the picture; longer runs have several steps per column


class GateLog:
    """Appends the decisions of every step, one bit per matrix; a resumed run has each step once.

    `gates.bits` has one row of whole bytes per step; `gates.json` names the bits of a row.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        """Prepares the file. It is created with the first decisions, so only with a gate.

        Args:
            path: `gates.bits` in the run directory.
            step: the step that the run resumes from; later rows are dropped.
        """
        self._path, self._step, self._file = path, step, None

    def write(self, decisions: Mapping[str, np.ndarray]) -> None:
        """Appends the row of the next step.

        Args:
            decisions: path to bool `[*batch]`, as from `mimuon_jax.diagnostics.gate_decisions`.
        """
        row = np.packbits(np.concatenate([np.ravel(x) for x in decisions.values()]))
        if self._file is None:
            write_atomically(_names_path(self._path), json.dumps(_names(decisions)))
            with writing(self._path):
                self._file = self._path.open("ab")
                self._file.truncate(self._step * row.size)
        with writing(self._path):
            self._file.write(row.tobytes())

    def sync(self) -> None:
        """Returns when all rows are on disk."""
        if self._file is not None:
            with writing(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with writing(self._path):
                self._file.close()


def read_gates(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the matrices, and bool `[steps, matrices]`: where the gate was open."""
    names = [str(name) for name in read_json(_names_path(path), list)]
    if not names:
        raise ValueError(f"{_names_path(path)} names no matrix")
    width = -(-len(names) // 8)
    rows = np.frombuffer(path.read_bytes(), np.uint8)
    rows = rows[: rows.size // width * width].reshape(-1, width)
    return names, np.unpackbits(rows, axis=1, count=len(names)).astype(bool)


def closed_throughout(path: Path) -> str | None:
    """One line if the gate was closed for every matrix at every step; otherwise None.

    Args:
        path: `gates.bits`.
    """
    names, is_open = read_gates(path)
    if is_open.any() or not is_open.size:
        return None
    return (
        f"the gate was closed for all {len(names)} matrices at all {len(is_open)} steps, so every "
        "update was that of momentum SGD; lower --optimizer.threshold, or see "
        "--optimizer.relative-to if gradients are clipped or the loss is scaled"
    )


def draw_gates(path: Path, picture_path: Path, *, title: str) -> None:
    """Draws how often the gate of every matrix was open, against steps.

    Args:
        path: `gates.bits`.
        picture_path: the PNG to write.
        title: title of the picture.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.ticker import MaxNLocator

    names, is_open = read_gates(path)
    rates = _binned(is_open, _COLUMNS)
    figure = Figure(figsize=(9, max(2.5, 1.5 + 0.13 * len(names))), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        rates.T,
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=1,
        cmap="viridis",
        extent=(0.5, len(is_open) + 0.5, len(names) - 0.5, -0.5),
    )
    axes.set_xlabel("optimizer step")
    axes.set_title(title, parse_math=False)  # a name may have a $
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(names)), names, fontsize=6, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of steps with an open gate")
    with replacing(picture_path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _binned(is_open: np.ndarray, columns: int) -> np.ndarray:
    """Means over equal ranges of steps, `[at most columns, matrices]`."""
    edges = np.linspace(0, len(is_open), min(columns, len(is_open)) + 1).astype(int)
    sums = np.add.reduceat(is_open.astype(np.float64), edges[:-1], axis=0)
    return sums / np.diff(edges)[:, None]


def _names(decisions: Mapping[str, np.ndarray]) -> list[str]:
    """One name per matrix: its path, and its index in a stack of layers."""
    return [
        path + "".join(f"[{i}]" for i in index)
        for path, x in decisions.items()
        for index in np.ndindex(np.shape(x))
    ]


def _names_path(path: Path) -> Path:
    """The file with the names of the bits."""
    return path.with_suffix(".json")
