"""The gate's measures of every matrix's momentum along a training run."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimuon_jax.engine.axes import to_matrices
from mimuon_jax.linalg.measures import MEASURES
from mimuon_jax.transforms.momentum import HeavyBallState
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Matrices, State
from train.config import Config
from train.experiments.runs import build, read_arrays


class Spectra(NamedTuple):
    """Measures of every matrix at every record."""

    steps: np.ndarray  # [R]
    paths: tuple[str, ...]  # [matrices]: the path of its parameter
    values: dict[str, np.ndarray]  # measure: [R, matrices], in the unit of the momentum

    def open_rate(self, measure: str, threshold: float, of: str = "") -> np.ndarray:
        """Share of the matrices whose gate would be open, at every record.

        Args:
            measure: which one.
            threshold: tau.
            of: only matrices of this kind, see `kind`; empty: all.
        """
        mine = [not of or kind(path) == of for path in self.paths]
        return (self.values[measure][:, mine] >= threshold).mean(1)

    def kinds(self) -> list[str]:
        """The kinds of matrices, sorted."""
        return sorted({kind(path) for path in self.paths})


def kind(path: str) -> str:
    """The role of a matrix within its layer: its path without numbers and without the last name.

    Example:
        >>> kind("layers/attention/query/kernel"), kind("blocks/0/conv1/kernel")
        ('layers/attention/query', 'blocks/conv1')
    """
    names = [name for name in path.split("/") if not name.isdecimal()]
    return "/".join(names[:-1] or names)


def spectra(config: Config, path: Path, *, records: int) -> Spectra:
    """Trains a configuration and measures its momenta along the way; cached in a file.

    Args:
        config: its optimizer has heavy-ball momentum.
        path: the file, `.npz`.
        records: number of measurements, at equal distances; the last step is one of them.

    Returns:
        The measures.
    """
    if not path.exists():
        steps, paths, values = _measure(config, records)
        arrays: dict[str, Any] = {"steps": steps, "paths": np.asarray(paths), **values}
        temporary = path.with_name(f".{path.name}")
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)
    stored = read_arrays(path)
    values = {name: stored[name] for name in MEASURES}
    return Spectra(stored["steps"], tuple(map(str, stored["paths"])), values)


def _measure(config: Config, records: int) -> Spectra:
    """Makes the steps of the run, and measures at some of them."""
    parts = build(config)
    state, kept = parts.state, []
    matrices = parts.task.matrices
    measured = jax.jit(lambda momentum: _measures(momentum, matrices))
    paths = [
        role.path
        for x, role in _matrices(_momentum(state.opt_state), matrices)
        for _ in range(len(to_matrices(x, role.numbers)))
    ]
    steps = np.unique(np.linspace(0, config.steps, records + 1).round().astype(int)[1:])
    for k in range(config.steps):
        state, _ = parts.step(state, parts.batch(k))
        if k + 1 in steps:
            kept.append(jax.device_get(measured(_momentum(state.opt_state))))
    return Spectra(steps, tuple(paths), {n: np.stack([x[n] for x in kept]) for n in MEASURES})


def _measures(momentum: Any, matrices: Matrices) -> dict[str, Array]:
    """Every measure of every matrix."""
    found = [to_matrices(x, role.numbers) for x, role in _matrices(momentum, matrices)]
    return {
        name: jnp.concatenate([measure(x.astype(jnp.float32)) for x in found])
        for name, measure in MEASURES.items()
    }


def _matrices(tree: Any, matrices: Matrices) -> list[tuple[Array, Any]]:
    """Every matrix leaf and its role."""
    pairs = zip(jax.tree.leaves(tree), roles(tree, matrices), strict=True)
    return [(x, role) for x, role in pairs if role.numbers is not None]


def _momentum(state: State) -> Any:
    """The momentum of the matrices."""
    is_momentum = lambda x: isinstance(x, HeavyBallState)  # noqa: E731
    return next(filter(is_momentum, jax.tree.leaves(state, is_leaf=is_momentum))).mu
