"""Matrices that travel in 16 bits: what arrives, at which scales, and for which functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers as N

from benchmarks.hlo import work
from mimuon_jax.engine.batching import map_matrices
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.coupled_newton import coupled_newton
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.platforms import rounded_on
from mimuon_jax.linalg.powers import polar, power
from mimuon_jax.linalg.spectra import clipped_spectrum, dual_polar
from tests import spectra

SIZES, AXES = (4, 2), ("x", "y")


def place(x, spec, kind=AxisType.Explicit):
    mesh = jax.make_mesh(SIZES, AXES, axis_types=(kind,) * 2)
    return jax.device_put(x, NamedSharding(mesh, spec))


def through_the_wire(function, short=("cpu",)):
    def run(x):
        return map_matrices(function, [x], [N(1, 2)], equivariant=True, short=short)[0]

    return jax.jit(run)


def same(x):
    return x


@pytest.mark.parametrize(
    ("shape", "spec", "wanted"),
    [
        ((5, 16, 256), P(None, "x", "y"), ["all-to-all"] * 2),  # whole vectors
        ((5, 16, 24), P(None, ("x", "y")), ["all-to-all"] * 2),  # flattened
        ((5, 16, 24), P(), ["all-gather"]),
        ((5, 16, 24), P(None, "y"), ["all-gather", *["all-to-all"] * 2]),
    ],
)
def test_entries_keep_eleven_bits_at_every_scale(shape, spec, wanted):
    x = at_every_scale(shape)
    run, placed = through_the_wire(same), place(x, spec)
    text = run.lower(placed).compile().as_text() or ""
    done = work(text)
    assert sorted(done.collectives.elements()) == wanted
    assert set(done.carried) == {"u16"}
    assert_eleven_bits(np.asarray(run(placed)), x)


@pytest.mark.parametrize("spec", [P(None, "x", "y"), P(None, ("y", "x"))])
def test_so_they_do_where_only_xla_knows_the_layout(spec):
    x = at_every_scale((5, 16, 24))
    run, placed = through_the_wire(same), place(x, spec, AxisType.Auto)
    done = work(run.lower(placed).compile().as_text() or "")
    assert done.collectives["all-to-all"] == 4  # along each mesh axis, there and back
    scales = 5 + 2 * 8  # one per matrix, to all devices, and one per slot back, along each axis
    assert sum(done.carried.values()) - done.carried["u16"] <= 4 * scales
    assert_eleven_bits(np.asarray(run(placed)), x)


def at_every_scale(shape):
    random = np.random.default_rng(0)
    scales = np.array([1e-37, 1e-12, 1.0, 1e20, 3e37])[:, None, None]
    x = (random.standard_normal(shape) * scales).astype(np.float32)
    x[2] *= 10.0 ** random.integers(-12, 1, shape[1:])
    x[0, 0] = x[1] = 0  # a row, and a matrix
    return x


def assert_eleven_bits(y, x):
    largest = np.abs(x).max(axis=(1, 2), keepdims=True)
    # Numbers that are subnormal in float32 may arrive as zero.
    bound = np.maximum(2.0**-11 * np.abs(x), 2.0**-24 * largest) + np.finfo(np.float32).tiny
    assert np.all(np.abs(y - x) <= bound)
    assert np.all(y[x == 0] == 0)
    assert np.any(y != x)


def test_non_finite_entries_arrive():
    x = np.ones((1, 16, 24), np.float32)
    x[0, 3, 5], x[0, 9, 7] = np.nan, -np.inf
    y = np.asarray(through_the_wire(same)(place(x, P(None, "x", "y"))))
    assert np.isnan(y[0, 3, 5])
    assert y[0, 9, 7] == -np.inf
    assert np.isfinite(y).sum() >= 16 * 24 // 2  # of other shards


@pytest.mark.parametrize(
    ("dtype", "short", "kind"),
    [
        ("float32", ("cpu",), AxisType.Explicit),
        ("float32", ("cpu",), AxisType.Auto),
        ("bfloat16", (), AxisType.Explicit),
    ],
)
def test_what_travels_as_bits_has_a_gradient(dtype, short, kind):
    x = np.random.default_rng(0).standard_normal((3, 16, 24))
    placed = place(jnp.asarray(x, dtype), P(None, "x", "y"), kind)
    run = through_the_wire(lambda x: x * x, short)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x).astype(jnp.float32))))(placed)
    np.testing.assert_allclose(np.asarray(gradient, np.float32), 2 * x, rtol=2**-7)


@pytest.mark.parametrize(
    ("function", "bar"),
    [
        pytest.param(functools.partial(newton_schulz, dtype=jnp.float16), 0.006, id="GPU"),
        pytest.param(functools.partial(newton_schulz, dtype=jnp.bfloat16), 0.015, id="TPU"),
        pytest.param(
            functools.partial(gram_newton_schulz, dtype=jnp.float16),
            0.010,
            id="Gram",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bars_of_accuracy_hold_for_sharded_matrices(function, bar):
    matrices = spectra.synthetic(64)
    del matrices["zero"]
    placed = place(spectra.stacked(matrices), P(None, ("x", "y")))
    results = np.asarray(through_the_wire(function)(placed))
    found = [spectra.accuracy(y, x) for y, x in zip(results, matrices.values(), strict=True)]
    assert max(each.error for each in found) <= bar
    assert max(each.largest for each in found) <= 1.01


GPUS, ALL = {"cuda", "rocm"}, {"cuda", "rocm", "tpu"}
PARTIAL = functools.partial


@pytest.mark.parametrize(
    ("function", "platforms"),
    [
        (newton_schulz, ALL),
        (PARTIAL(newton_schulz, schedule=JORDAN), ALL),
        (PARTIAL(newton_schulz, dtype="float32"), set()),
        (PARTIAL(newton_schulz, dtype=jnp.bfloat16), ALL),
        (jax.jit(newton_schulz), ALL),
        (jax.jit(PARTIAL(newton_schulz, dtype="float32")), set()),
        (PARTIAL(jax.jit(newton_schulz, static_argnames="dtype"), dtype="float32"), set()),
        (fast_newton_schulz, ALL),
        (gram_newton_schulz, GPUS),
        (PARTIAL(gram_newton_schulz, restarts=(3,)), set()),  # float32 on every platform
        (PARTIAL(dual_polar, orthogonalizer=newton_schulz), ALL),
        (PARTIAL(dual_polar, orthogonalizer=polar), set()),
        (PARTIAL(clipped_spectrum, limit=1.0, orthogonalizer=newton_schulz), set()),
        (polar, set()),
        (PARTIAL(power, p=0.5, method=coupled_newton), set()),
        (lambda x: newton_schulz(x), set()),  # nobody declared it
    ],
)
def test_sixteen_bits_travel_where_the_function_rounds_to_them(function, platforms):
    assert rounded_on(function) == platforms
