"""One matrix at a time: arrays split into matrices, spectral powers, measures, gains."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Axes = tuple[tuple[int, ...], tuple[int, ...]]
"""(reduction axes, output axes); every other axis is a batch axis."""
Numbers = dict[str, Axes | None]
"""Path to axes; `None` marks an auxiliary parameter."""


def as_matrices(x: Array, axes: Axes) -> list[Array]:
    """The `[reduction, output]` matrices of `x`, in row-major order of the batch axes."""
    reduction, output = axes
    batch = [axis for axis in range(x.ndim) if axis not in reduction + output]
    rows = math.prod(x.shape[axis] for axis in reduction)
    columns = math.prod(x.shape[axis] for axis in output)
    ordered = np.transpose(x, [*batch, *reduction, *output])
    return list(ordered.reshape(-1, rows, columns))


def per_matrix(function: Callable[..., Array], axes: Axes, *arrays: Array) -> Array:
    """`function` of the corresponding matrices of all `arrays`, assembled to one array again."""
    reduction, output = axes
    batch = [axis for axis in range(arrays[0].ndim) if axis not in reduction + output]
    order = [*batch, *reduction, *output]
    matrices = zip(*(as_matrices(array, axes) for array in arrays), strict=True)
    results = np.stack([function(*group) for group in matrices])
    return np.transpose(
        results.reshape([arrays[0].shape[axis] for axis in order]), np.argsort(order)
    )


def singular_triples(m: Array) -> tuple[Array, Array, Array]:
    """`U, s, V^T` with the zero singular values left out: `s` holds the index set `S_t`."""
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    kept = s > max(m.shape) * np.finfo(np.float64).eps * s[0]
    return u[:, kept], s[kept], vt[kept]


def spectral_power(m: Array, p: float) -> Array:
    """`Psi_p(M) = U S^p V^T` over the non-zero singular values; a zero matrix stays zero."""
    u, s, vt = singular_triples(m)
    return (u * s**p) @ vt


def orthogonal(m: Array) -> Array:
    """`Orth(M) = U V^T`."""
    return spectral_power(m, 0.0)


def newton_schulz(m: Array, *, steps: int = 5, eps: float = 0.0) -> Array:
    """The quintic iteration with Jordan's fixed coefficients, from `M / (||M||_F + eps)`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    if not m.any():
        return m
    x = m / (np.linalg.norm(m) + eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def gap(m: Array) -> float:
    """The smallest distance of two non-zero singular values; `+inf` where no pair exists."""
    s = singular_triples(m)[1]
    pairs = [abs(s[i] - s[j]) for i in range(len(s)) for j in range(i)]
    return min(pairs, default=np.inf)


MEASURES: dict[str, Callable[[Array], float]] = {
    "gap": gap,
    "rms": lambda m: float(np.sqrt((m**2).sum() / min(m.shape))),
    "frobenius": lambda m: float(np.sqrt((m**2).sum())),
    "spectral": lambda m: float(np.linalg.svd(m, compute_uv=False)[0]),
}

GAINS: dict[str | None, Callable[[int, int], float]] = {
    "width": lambda reduction, output: max(1.0, output / reduction) ** 0.5,
    "rms": lambda reduction, output: 0.2 * max(reduction, output) ** 0.5,
    "spectral": lambda reduction, output: (output / reduction) ** 0.5,
    None: lambda reduction, output: 1.0,
}


def gate_is_open(m: Array, measure: str | Callable[[Array], float], threshold: float) -> bool:
    """Whether `measure(m) >= threshold`; never for an infinite threshold, whatever the gap."""
    value = MEASURES[measure](m) if isinstance(measure, str) else measure(m)
    return bool(value >= threshold) and threshold < np.inf
