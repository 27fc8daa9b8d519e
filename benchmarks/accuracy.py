"""A table of the accuracy of every orthogonalizer and spectral power.

python -m benchmarks.accuracy > docs/accuracy.md
"""

import argparse
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.linalg.coefficients import DION, JORDAN, Schedule, polar_express
from mimuon_jax.linalg.coupled_newton import coupled_newton
from mimuon_jax.linalg.newton_schulz import (
    fast_newton_schulz,
    gram_newton_schulz,
    newton_schulz,
)
from mimuon_jax.linalg.powers import polar, power
from tests import spectra

Matrices = dict[str, np.ndarray]
Function = Callable[[jax.Array], jax.Array]

SCHEDULES: dict[str, Schedule] = {
    "Jordan, 5 steps": JORDAN,
    "Dion (You), 5 steps": DION,
    **{f"Polar Express, {steps} steps": polar_express(steps) for steps in (5, 6, 7, 8)},
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

INTRODUCTION = """\
# Accuracy

How accurate the orthogonalizers and spectral powers of this library are on matrices with known
singular value decompositions. Written by `python -m benchmarks.accuracy`; JAX {version} on
{backend}. Accelerators round differently, and nothing here was measured on one;
`python -m benchmarks gpu` checks bounds on these numbers on a GPU.

The matrices are of two kinds. *Synthetic*: {synthetic} matrices with {rows} rows
(`tests/spectra.py`), namely Gaussian ones with aspect ratios 1, 2 and 4 and with scales 1e-30 and
1e30; power laws `s_i = i^-a` and log-spaced singular values with condition numbers from 1e2 to 1e6;
rank 8 plus noise; half rank. *Momenta*: {momenta} real momenta of a small character transformer
(`tests/momenta.npz`) with 128 rows and condition numbers from 8e1 to 4e5.

An orthogonalizer maps `M = U S V^T` to `Y`. With `D = U^T Y V`, in float64:

- *error* is the largest `|D_ii - 1|` where `s_i > 1e-3 ||M||_F`, the interval that Polar Express is
  made for;
- *largest* is the largest singular value of `Y`;
- *drift* says how far the singular vectors turned: the root mean square, over the directions with
  a non-zero singular value, of the length of the part of `D` off its diagonal. The directions of
  small singular values turn first, since rounding mixes them.

The *Gram form* (`gram_newton_schulz`) iterates on `M M^T`, which is smaller, instead of `M`.
*Coupled iterations* (`coupled_newton`) compute a power and its inverse together; their *damping* is
added to the squared singular values of `M / ||M||_F`, so that the inverse of a tiny one stays
finite.

Each cell shows the worst matrix of its kind, so the cells of one row may refer to different
matrices.

In short: the default, `newton_schulz` with six steps of Polar Express, brings every singular value
above a thousandth of the norm within 0.6 % of 1, on every platform. `fast_newton_schulz` is as
accurate and needs fewer FLOPs. `spectral_sgd` and `spectral_adam` compute powers in float32 by
default; 16-bit powers err by 20 to 70 % on ill-conditioned matrices.
"""


def main() -> None:
    """Prints the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="rows of the synthetic matrices")
    rows = parser.parse_args().rows
    jax.config.update("jax_num_cpu_devices", 8)  # for sharded matrices
    synthetic = spectra.synthetic(rows) | spectra.gaussians(rows)
    del synthetic["zero"]  # exactly zero in every row: tests/test_newton_schulz.py
    momenta = spectra.momenta()
    version, backend = jax.__version__, jax.default_backend()
    sizes = {"rows": rows, "synthetic": len(synthetic), "momenta": len(momenta)}
    print(INTRODUCTION.format(version=version, backend=backend, **sizes))
    judged = [f"{of}, {kind}" for kind in ("synthetic", "momenta") for of in _OF]
    print("## The defaults\n")
    print(DEFAULTS)
    header = ["function", "platform and dtype", *judged]
    _table(header, _orthogonalizers(_defaults(), [synthetic, momenta]))
    print("\n## Orthogonalizers\n")
    header = ["method", "dtype", *judged]
    _table(header, _orthogonalizers(_methods(), [synthetic, momenta]))
    print("\n## Below the interval\n")
    print("What a singular value `s` of `M / ||M||_F` is mapped to, without rounding.\n")
    points = np.array([1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    header = ["schedule", *(f"s = {point:.0e}" for point in points)]
    _table(header, ([name, *_image(schedule, points)] for name, schedule in SCHEDULES.items()))
    print("\n## Spectral powers\n")
    print(POWERS)
    _table(["spectrum", *_powers()], _power_errors(synthetic | momenta))


_OF = ("error", "largest", "drift")

DEFAULTS = """\
With `dtype=None`, the dtype depends on the platform: the fastest one whose error is about that of
float32. These rows round the factors of the products as each platform does, on the backend named
above. *Sharded* matrices also travel between devices in 16 bits, there and back.
"""

POWERS = """\
The relative Frobenius error of `U S^p V^T`. The columns give the exponent and, for the coupled
iterations, the dtype and the damping; *svd* is the float32 SVD, which treats singular values below
`s_1 max(m, n) eps` as zero.
"""


def _table(header: list[str], rows: Iterable[list[str]]) -> None:
    """Prints a Markdown table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def _orthogonalizers(
    methods: dict[tuple[str, str], Function], kinds: list[Matrices]
) -> Iterable[list[str]]:
    """One row per method and dtype: the worst error, largest value and drift of each kind."""
    for (method, dtype), function in methods.items():
        cells = []
        for matrices in kinds:
            results = _apply(function, matrices)
            judged = [spectra.accuracy(results[name], x) for name, x in matrices.items()]
            worst = [max(values) for values in zip(*judged, strict=True)]
            cells += [_short(worst[0]), f"{worst[1]:.4f}", _short(worst[2])]
        yield [method, dtype, *cells]


def _defaults() -> dict[tuple[str, str], Function]:
    """What ``dtype=None`` means, by function, platform and dtype; sharded: on several devices."""
    chosen = {
        newton_schulz: ("float32", "float16", "bfloat16"),
        gram_newton_schulz: ("float32", "float16", "float32"),
        fast_newton_schulz: ("float32", "float16", "bfloat16"),
    }
    rows: dict[tuple[str, str], Function] = {
        (f"`{function.__name__}`", f"{platform}: {dtype}"): functools.partial(function, dtype=dtype)
        for function, dtypes in chosen.items()
        for platform, dtype in zip(("CPU", "GPU", "TPU"), dtypes, strict=True)
    }
    for platform, dtype in {"GPU": "float16", "TPU": "bfloat16"}.items():
        function = functools.partial(newton_schulz, dtype=dtype)
        rows["`newton_schulz`, sharded", f"{platform}: {dtype}"] = _sharded(function)
    return rows


def _sharded(function: Function) -> Function:
    """The function of matrices whose rows are sharded, and travel in 16 bits."""
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    spec = P(None, "fsdp")

    def run(x: jax.Array) -> jax.Array:
        numbers = [MuonDimensionNumbers(1, 2)]
        return map_matrices(
            function, [x], numbers, shardings=[spec], equivariant=True, short={"cpu"}
        )[0]

    return jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _methods() -> dict[tuple[str, str], Function]:
    """The orthogonalizers, by name and dtype."""
    methods: dict[tuple[str, str], Function] = {}
    for name, schedule in SCHEDULES.items():
        for dtype_name, dtype in DTYPES.items():
            methods[name, dtype_name] = functools.partial(
                newton_schulz, schedule=schedule, dtype=dtype
            )
    for steps in (5, 6, 8):
        for dtype_name in ("float32", "float16"):
            methods[f"Gram form, Polar Express, {steps} steps", dtype_name] = functools.partial(
                gram_newton_schulz, schedule=polar_express(steps), dtype=DTYPES[dtype_name]
            )
    methods["SVD (`polar`)", "float32"] = polar
    return methods


def _image(schedule: Schedule, s: np.ndarray) -> list[str]:
    """The schedule's polynomial in float64."""
    s = s / schedule.prescale
    for a, b, c in schedule.triples:
        s = a * s + b * s**3 + c * s**5
    return [f"{value:.4f}" for value in s]


def _powers() -> dict[str, tuple[float, Function]]:
    """Exponent and function, by column."""
    columns: dict[str, tuple[float, Function]] = {}
    for p in (0.5, 0.25):
        columns[f"{p}, svd"] = (p, functools.partial(power, p=p))
        for name, damping in (("float32", 1e-8), ("float16", 5e-4), ("bfloat16", 4e-3)):
            columns[f"{p}, {name}, {damping:.0e}"] = (
                p,
                functools.partial(coupled_newton, p=p, damping=damping, dtype=DTYPES[name]),
            )
    return columns


def _power_errors(matrices: Matrices) -> Iterable[list[str]]:
    """One row per matrix."""
    columns = []
    for p, function in _powers().values():
        results = _apply(function, matrices)
        columns.append({n: spectra.power_error(results[n], x, p) for n, x in matrices.items()})
    for name in matrices:
        yield [name, *(f"{100 * column[name]:.2f} %" for column in columns)]


def _apply(function: Function, matrices: Matrices) -> Matrices:
    """The function's results by name; compiled once for each number of rows."""
    results = {}
    for rows in {x.shape[0] for x in matrices.values()}:
        chosen = {name: x for name, x in matrices.items() if x.shape[0] == rows}
        y = jax.jit(function)(jnp.asarray(spectra.stacked(chosen)))
        results |= dict(zip(chosen, np.asarray(y), strict=True))
    return results


def _short(value: float) -> str:
    """Two significant digits, small ones in scientific notation."""
    return f"{value:.2g}" if value < 1e-3 else f"{value:.4f}"


if __name__ == "__main__":
    main()
