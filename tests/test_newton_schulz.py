"""Newton-Schulz against a float64 rewrite of the polynomial, and its laws."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.linalg import platforms
from mimuon_jax.linalg.coefficients import DION, JORDAN, POLAR_EXPRESS, Schedule
from mimuon_jax.linalg.coupled_newton import coupled_newton
from mimuon_jax.linalg.measures import spectral_norm
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.products import compute_dtype, product
from mimuon_jax.linalg.scaling import check_matrices, unit_frobenius, unit_maximum

SHAPE = (2, 3, 24, 40)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rewrite(x: np.ndarray, schedule: Schedule) -> np.ndarray:
    """The polynomial in float64, on the larger side."""
    x = np.asarray(x, np.float64)
    x = x / (schedule.prescale * np.linalg.norm(x, axis=(-2, -1), keepdims=True))
    for a, b, c in schedule.triples:
        gram = np.swapaxes(x, -2, -1) @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x


def relative(y: jax.Array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(y, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "schedule",
    [JORDAN, DION, POLAR_EXPRESS, Schedule(((1.5, -0.5, 0.0),) * 4, prescale=1.25)],
    ids=["jordan", "dion", "polar express", "cubic, pre-scaled"],
)
def test_equals_the_float64_polynomial(schedule):
    x = gaussian(*SHAPE)
    # Observed: 2e-7 to 6e-7.
    assert relative(newton_schulz(jnp.asarray(x), schedule=schedule), rewrite(x, schedule)) < 1e-5


def test_transposes_and_batches_commute():
    x = jnp.asarray(gaussian(*SHAPE))
    y = newton_schulz(x)
    chex.assert_trees_all_close(newton_schulz(x.mT).mT, y, atol=0, rtol=0)
    slices = jax.vmap(jax.vmap(newton_schulz))(x)
    chex.assert_trees_all_close(slices, y, atol=1e-6)
    chex.assert_trees_all_close(newton_schulz(x[1, 2]), y[1, 2], atol=1e-6)
    chex.assert_trees_all_close(jax.jit(newton_schulz)(x), y, atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_the_input_does_not_matter(scale):
    x = gaussian(*SHAPE)
    y = newton_schulz(jnp.asarray(x * np.float32(scale)))
    # The rounding of x * scale, amplified by the steepest schedule. Observed: 1e-6.
    assert relative(y, np.asarray(newton_schulz(jnp.asarray(x)), np.float64)) < 1e-5


def test_powers_of_two_change_no_bit():
    x = jnp.asarray(gaussian(*SHAPE))
    chex.assert_trees_all_equal(newton_schulz(x * 2.0**-80), newton_schulz(x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_zero_stays_zero_beside_matrices_that_are_not(dtype):
    x = jnp.asarray(gaussian(*SHAPE)).at[1, 1].set(0.0)
    y = newton_schulz(x, dtype=dtype)
    chex.assert_trees_all_equal(y[1, 1], jnp.zeros(SHAPE[2:]))
    chex.assert_tree_all_finite(y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_input_is_kept(dtype):
    x = jnp.asarray(gaussian(*SHAPE)).astype(dtype)
    for compute in (None, jnp.bfloat16, jnp.float16):
        assert newton_schulz(x, dtype=compute).dtype == dtype
    exact = rewrite(np.asarray(x, np.float32), POLAR_EXPRESS)
    # Half an ulp of the output dtype, relative to entries of like size. Observed: 0.29 eps.
    assert relative(newton_schulz(x), exact) < max(float(jnp.finfo(dtype).eps), 1e-5)


def test_rank_deficiency_is_kept():
    x = gaussian(24, 5) @ gaussian(5, 40, seed=1)
    s = np.linalg.svd(np.asarray(newton_schulz(jnp.asarray(x))), compute_uv=False)
    np.testing.assert_allclose(s[:5], 1, atol=0.006)
    # Rounding in the null space, grown by the product of the slopes at zero, at most 1700.
    assert s[5:].max() < 1e-3


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0), (0, 0), (1, 1), (1, 7), (7, 1)])
def test_degenerate_shapes(shape):
    y = newton_schulz(jnp.ones(shape))
    assert y.shape == shape
    if y.size:
        assert abs(float(jnp.linalg.norm(y)) - 1) < 0.006


def test_not_a_number_is_not_hidden():
    x = jnp.asarray(gaussian(*SHAPE)).at[0, 0, 3, 4].set(jnp.nan)
    y = newton_schulz(x)
    assert bool(jnp.isnan(y[0, 0]).all())
    chex.assert_tree_all_finite(y[1])


def test_gradients_are_finite_even_at_zero():
    x = jnp.asarray(gaussian(*SHAPE)).at[1, 1].set(0.0)
    chex.assert_tree_all_finite(jax.grad(lambda x: newton_schulz(x).sum())(x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_products_accumulate_in_float32(dtype):
    a, b = (jnp.asarray(gaussian(*SHAPE, seed=seed)).astype(dtype) for seed in (0, 1))
    y = product(a, b.mT)
    exact = np.asarray(a, np.float64) @ np.asarray(b.mT, np.float64)
    assert y.dtype == jnp.float32
    assert relative(y, exact) < 1e-6


def products_on(platform, function, shape=(24, 40)):
    """Operand dtypes, precision and result dtype of all products, as lowered for a platform."""
    traced = jax.jit(function).trace(jax.ShapeDtypeStruct(shape, jnp.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert lines
    found = [
        re.search(r"precision = \[(\w+), \1\] : \(.*x(\w+)>, .*x\2>\) -> .*x(\w+)>", line)
        for line in lines
    ]
    assert all(found), lines
    return {match.group(2, 1, 3) for match in found if match}


SINGLE, HALF = ("f32", "HIGHEST", "f32"), ("f16", "HIGHEST", "f32")
BRAIN = ("bf16", "DEFAULT", "f32")  # one pass of a TPU multiplies exactly these


@pytest.mark.parametrize(
    ("form", "dtype", "wanted"),
    [
        (newton_schulz, None, {"cpu": SINGLE, "cuda": HALF, "rocm": HALF, "tpu": BRAIN}),
        (gram_newton_schulz, None, {"cpu": SINGLE, "cuda": HALF, "rocm": HALF, "tpu": SINGLE}),
        (fast_newton_schulz, None, {"cpu": SINGLE, "cuda": HALF, "rocm": HALF, "tpu": BRAIN}),
        (newton_schulz, "float32", {"cpu": SINGLE, "cuda": SINGLE, "tpu": SINGLE}),
        (fast_newton_schulz, "float32", {"cuda": SINGLE, "tpu": SINGLE}),
        (newton_schulz, "bfloat16", {"cpu": SINGLE, "cuda": BRAIN, "tpu": BRAIN}),
        (gram_newton_schulz, "float16", {"cpu": HALF, "cuda": HALF, "tpu": HALF}),
        (functools.partial(coupled_newton, p=0.5), None, {"cuda": SINGLE, "tpu": SINGLE}),
        (spectral_norm, None, {"cuda": SINGLE, "tpu": SINGLE}),
    ],
)
def test_products_state_the_precision_of_their_dtype_on_every_platform(form, dtype, wanted):
    function = form if form is spectral_norm else functools.partial(form, dtype=dtype)
    assert {p: products_on(p, function) for p in wanted} == {p: {w} for p, w in wanted.items()}


def test_the_gram_form_of_sparse_restarts_is_float32_on_a_gpu():
    sparse = functools.partial(gram_newton_schulz, restarts=(3, 5))
    assert products_on("cuda", sparse) == {SINGLE}


@pytest.mark.parametrize("form", [newton_schulz, gram_newton_schulz, fast_newton_schulz])
def test_a_loop_of_steps_gives_the_unrolled_result(form, monkeypatch):
    """The loop is for TPUs; here a CPU runs it."""
    x = jnp.asarray(gaussian(2, 12, 40))
    expected = jax.jit(form)(x)
    unrolled = platforms.repeat

    def rolled(step, x, coefficients, *, rolled):
        return unrolled(step, x, coefficients, rolled=True)

    for module in ("newton_schulz", "gram"):
        monkeypatch.setattr(f"mimuon_jax.linalg.{module}.repeat", rolled)
    looped = lambda x: form(x)  # noqa: E731
    assert "stablehlo.while" in jax.jit(looped).lower(x).as_text()
    chex.assert_trees_all_close(jax.jit(looped)(x), expected, atol=1e-5)


@pytest.mark.parametrize("form", [newton_schulz, gram_newton_schulz, fast_newton_schulz])
def test_on_a_tpu_the_steps_are_a_loop(form):
    traced = jax.jit(form).trace(jax.ShapeDtypeStruct((24, 40), jnp.float32))
    counts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("dot_general")
        for platform in ("tpu", "cuda")
    }
    periods = 3 if form is gram_newton_schulz else 6
    wide = form is not newton_schulz  # the Gram form on a GPU: 21 products in 3 periods of 2 steps
    assert counts == {"tpu": (21 if periods == 3 else 18) // periods, "cuda": 21 if wide else 18}


def test_normalization():
    x = jnp.asarray(gaussian(*SHAPE)).at[0, 0].set(0.0)
    y, scale = unit_maximum(x)
    assert scale.shape == (2, 3, 1, 1)
    assert float(scale[0, 0, 0, 0]) == 1.0
    chex.assert_trees_all_close(y * scale, x, rtol=1e-6)
    norms = jnp.linalg.norm(unit_frobenius(x), axis=(-2, -1))
    chex.assert_trees_all_close(norms, jnp.ones((2, 3)).at[0, 0].set(0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((5,), jnp.float32, r"newton_schulz needs a batch of matrices .* got shape \(5,\)"),
        ((5, 4), jnp.int32, r"newton_schulz needs a real .* got int32 of shape \(5, 4\)"),
        ((5, 4), jnp.complex64, r"newton_schulz needs a real .* got complex64"),
    ],
)
def test_arrays_that_are_not_matrices_are_refused(shape, dtype, message):
    # Calls the check itself: the tests' shape checker would stop a call of the function first.
    with pytest.raises(ValueError, match=message):
        check_matrices(jnp.zeros(shape, dtype), "newton_schulz")


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float64, "float8_e4m3fn"])
def test_other_compute_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        compute_dtype(dtype)


@pytest.mark.parametrize(
    "form",
    [
        newton_schulz,
        pytest.param(gram_newton_schulz, marks=pytest.mark.slow),
        pytest.param(fast_newton_schulz, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_cpu_computes_large_matrices_one_by_one_and_the_same(form, transposed):
    x = jnp.asarray(gaussian(3, 256, 1024))
    x = x.mT if transposed else x
    lowered = {
        platform: jax.jit(form).trace(x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    products = {platform: text.count("stablehlo.dot_general") for platform, text in lowered.items()}
    assert products["cpu"] == products["cuda"]  # of one matrix, and of all three at once
    assert ["stablehlo.while" in lowered[platform] for platform in ("cpu", "cuda")] == [True, False]
    each = jnp.stack([form(matrix) for matrix in x])
    chex.assert_trees_all_close(jax.jit(form)(x), each, atol=1e-6)


def test_a_batch_sharded_on_explicit_axes_is_computed_at_once():
    mesh = jax.make_mesh((2,), ("stage",), devices=jax.devices()[:2])
    layout = jax.sharding.NamedSharding(mesh, jax.P("stage"))
    x = jnp.asarray(gaussian(2, 512, 512))
    with jax.set_mesh(mesh):
        y = jax.jit(newton_schulz)(jax.device_put(x, layout))
    assert y.sharding.is_equivalent_to(layout, 3)
    chex.assert_trees_all_close(jax.device_get(y), jax.device_get(newton_schulz(x)), atol=1e-5)
