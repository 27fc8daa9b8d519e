"""Matrices with the spectra of real momenta, and the errors of orthogonalizers on them.

Gaussian matrices make every method look good. The momenta of a 3-layer, 256-wide transformer had
condition numbers from 6e2 to 7e8, and up to 70 % of their singular values were below 1e-3 of the
Frobenius norm.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: The interval on which Polar Express is optimal, relative to the Frobenius norm.
SMALLEST = 1e-3


def with_singular_values(s: np.ndarray, n: int, seed: int) -> np.ndarray:
    """A float64 ``[len(s), n]`` matrix with singular values ``s`` and Haar-distributed vectors."""
    generator = np.random.default_rng(seed)
    return (_haar(generator, len(s), len(s)) * s) @ _haar(generator, n, len(s)).T


def _haar(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    q, r = np.linalg.qr(generator.standard_normal((rows, columns)))
    return q * np.sign(np.diag(r))


def synthetic(m: int, aspect: int = 2) -> dict[str, np.ndarray]:
    """The synthetic spectra, as float32 ``[m, aspect m]`` matrices by name."""
    n = aspect * m
    rank = np.arange(1, m + 1)
    generator = np.random.default_rng(m)
    spectra = {}
    for condition in (1e2, 1e3, 1e4, 1e6):
        spectra[f"power law {condition:.0e}"] = rank ** -(np.log(condition) / np.log(m))
    for condition in (1e2, 1e4, 1e6):
        spectra[f"log-spaced {condition:.0e}"] = condition ** (-(rank - 1) / (m - 1))
    matrices = {
        name: with_singular_values(s, n, seed) for seed, (name, s) in enumerate(spectra.items())
    }
    low = with_singular_values(np.where(rank <= 8, 1.0, 0.0), n, 100)
    matrices["rank 8 + noise"] = low + 1e-3 * generator.standard_normal((m, n)) / np.sqrt(n)
    matrices["rank m/2"] = generator.standard_normal((m, m // 2)) @ generator.standard_normal(
        (m // 2, n)
    )
    matrices["zero"] = np.zeros((m, n))
    gaussian = generator.standard_normal((m, n))
    matrices["gaussian"] = gaussian
    matrices["gaussian 1e-30"] = 1e-30 * gaussian
    matrices["gaussian 1e+30"] = 1e30 * gaussian
    return {name: matrix.astype(np.float32) for name, matrix in matrices.items()}


def gaussians(m: int) -> dict[str, np.ndarray]:
    """Gaussian ``[m, aspect m]`` matrices of aspect 1 and 4; `synthetic` has one of aspect 2."""
    generator = np.random.default_rng(m)
    return {
        f"gaussian {aspect}:1": generator.standard_normal((m, aspect * m)).astype(np.float32)
        for aspect in (1, 4)
    }


def momenta() -> dict[str, np.ndarray]:
    """Real momenta of a small character transformer, written by ``tests/make_momenta.py``.

    Six ``[128, 128]`` and two ``[128, 512]`` (one is a transpose). Condition numbers from 8e1 to
    4e5, up to half of the singular values below 1e-3 of the Frobenius norm.
    """
    with np.load(Path(__file__).with_name("momenta.npz")) as stored:
        matrices = {name: stored[name] for name in stored.files}
    return {name: x if x.shape[0] <= x.shape[1] else x.T for name, x in matrices.items()}


def stacked(matrices: dict[str, np.ndarray]) -> np.ndarray:
    """All matrices as one batch, narrow ones padded with zero columns, to compile once.

    Zero columns do not change singular values, and they stay zero under an odd polynomial.
    """
    width = max(x.shape[1] for x in matrices.values())
    return np.stack([np.pad(x, [(0, 0), (0, width - x.shape[1])]) for x in matrices.values()])


class Accuracy(NamedTuple):
    """How far ``y`` is from the exact ``U V^T``, with all sums in float64."""

    #: sup |d_i - 1| over the directions with s_i > 1e-3 ||M||_F, where d = diagonal of U^T Y V
    error: float
    #: largest singular value of Y
    largest: float
    #: root mean square over the rows of U^T Y V without its diagonal, on the non-zero directions
    drift: float


def accuracy(y: np.ndarray, x: np.ndarray) -> Accuracy:
    """The errors of ``y``, without its padding, as the orthogonal factor of one matrix ``x``."""
    y = y[:, : x.shape[1]].astype(np.float64)
    if not np.isfinite(y).all():
        return Accuracy(np.inf, np.inf, np.inf)
    u, s, vt = _svd(x.tobytes(), x.shape)
    live = s > s[0] * max(x.shape) * np.finfo(np.float32).eps
    rotated = (u.T @ y @ vt.T)[np.ix_(live, live)]
    diagonal = np.diag(rotated)
    judged = (s > SMALLEST * np.linalg.norm(s))[live]
    return Accuracy(
        error=float(np.abs(diagonal[judged] - 1).max()),
        largest=float(np.linalg.norm(y, ord=2)),
        drift=float(np.linalg.norm(rotated - np.diag(diagonal)) / np.sqrt(live.sum())),
    )


def spectral_power(x: np.ndarray, p: float, tolerance: float = 1e-9) -> np.ndarray:
    """``U S^p V^T`` of one float32 matrix in float64, over ``s > tolerance s_1``."""
    scale = float(np.abs(x).max()) or 1.0
    u, s, vt = _svd(x.tobytes(), x.shape)
    live = s > tolerance * s[0]
    return (u * np.where(live, np.where(live, s, 1.0) ** p, 0.0)) @ vt * scale**p


def power_error(y: np.ndarray, x: np.ndarray, p: float) -> float:
    """The relative Frobenius error of ``y``, without its padding, as ``U S^p V^T`` of ``x``."""
    y = y[:, : x.shape[1]]
    exact = spectral_power(x, p)
    if not np.isfinite(y).all():
        return np.inf
    return float(np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact))


@functools.lru_cache(maxsize=256)
def _svd(x: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin SVD in float64 of a float32 matrix scaled to max |x| = 1."""
    matrix = np.frombuffer(x, np.float32).reshape(shape).astype(np.float64)
    return np.linalg.svd(matrix / (np.abs(matrix).max() or 1.0), full_matrices=False)
