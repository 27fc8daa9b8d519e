"""The Gram form, symmetric products by blocks, and the choice between the forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.linalg import symmetric
from mimuon_jax.linalg.coefficients import JORDAN, POLAR_EXPRESS, Schedule, polar_express
from mimuon_jax.linalg.gram import checked_restarts, gram_dtype
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, gram_newton_schulz, newton_schulz
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.symmetric import symmetric_product

SHAPE = (2, 3, 24, 40)


def gaussian(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture
def always_blocks(monkeypatch):
    """Blocks at every size. Functions traced under this fixture must not be traced elsewhere."""
    monkeypatch.setattr(symmetric, "SMALLEST", 1)


@pytest.mark.parametrize(
    ("schedule", "restarts"),
    [
        (JORDAN, None),
        (POLAR_EXPRESS, (2, 4)),
        (POLAR_EXPRESS, (3, 5)),
        (polar_express(1), None),
        (polar_express(3), ()),
        (Schedule(((1.5, -0.5, 0.0),) * 4, prescale=1.25), None),
    ],
)
def test_the_gram_form_is_the_same_polynomial(schedule, restarts):
    x = gaussian(*SHAPE)
    y = gram_newton_schulz(x, schedule=schedule, restarts=restarts)
    # Entries are about 0.2. Observed: 2e-6, with three steps between restarts 2e-5.
    chex.assert_trees_all_close(y, newton_schulz(x, schedule=schedule), atol=5e-5)


@pytest.mark.parametrize("function", [gram_newton_schulz, fast_newton_schulz])
def test_transposes_batches_zero_and_dtype(function):
    x = gaussian(*SHAPE).at[1, 1].set(0.0)
    y = function(x)
    chex.assert_trees_all_equal(y[1, 1], jnp.zeros(SHAPE[2:]))
    chex.assert_trees_all_close(function(x.mT).mT, y, atol=0, rtol=0)
    chex.assert_trees_all_close(jax.jit(jax.vmap(function))(x), y, atol=1e-5)
    chex.assert_trees_all_close(function(x[0, 2]), y[0, 2], atol=1e-5)
    for dtype in (jnp.float16, jnp.bfloat16):
        assert function(x.astype(dtype), dtype=jnp.float16).dtype == dtype
    chex.assert_trees_all_close(function(x * np.float32(1e-30)), y, atol=1e-5)


@pytest.mark.parametrize("m", [4, 5, 7])
def test_a_symmetric_product_equals_the_plain_one(m, always_blocks):
    x = gaussian(2, m, 20)
    chex.assert_trees_all_close(symmetric_product(x, x), product(x, x.mT), atol=1e-5)
    a = product(x, x.mT) / 20
    b = 2.0 * a + product(a, a)
    chex.assert_trees_all_close(symmetric_product(a, b), product(a, b), rtol=1e-4, atol=1e-4)


def test_only_the_lower_part_is_computed(always_blocks):
    """The first operand's upper blocks may hold anything: nothing depends on them."""
    a, x = gaussian(8, 8), gaussian(8, 8, seed=1)
    y = symmetric_product(a, x)
    chex.assert_trees_all_close(jnp.tril(y, -2), jnp.tril(y.mT, -2))
    chex.assert_trees_all_close(jnp.tril(y), jnp.tril(product(a, x.mT)), atol=1e-5)


def flops(function, *shapes: tuple[int, ...]) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_blocks_cost_five_eighths_of_the_flops():
    m, k = symmetric.SMALLEST, 768
    plain = flops(lambda x: product(x, x.mT), (m, k))
    assert plain == 2 * m * m * k
    assert flops(lambda x: symmetric_product(x, x), (m, k)) == 0.625 * plain


def test_small_products_are_plain():
    x = gaussian(symmetric.SMALLEST - 1, 3)
    chex.assert_trees_all_equal(symmetric_product(x, x), product(x, x.mT))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_the_gram_form_by_blocks(dtype, always_blocks):
    x = gaussian(2, 26, 60)
    y = gram_newton_schulz(x, dtype=dtype)
    bar = 2e-5 if dtype == jnp.float32 else 0.01
    chex.assert_trees_all_close(y, newton_schulz(x), atol=bar)


def test_the_standard_form_by_blocks(always_blocks):
    x = gaussian(2, 26, 30)
    chex.assert_trees_all_close(fast_newton_schulz(x), newton_schulz(x), atol=2e-5)


def products(function, shape: tuple[int, ...]) -> int:
    text = jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).as_text()
    return text.count("stablehlo.dot_general")


@pytest.mark.parametrize(
    ("shape", "dtype", "count"),
    [
        ((24, 36), None, 18),  # standard: 3 per step
        ((24, 37), None, 21),  # Gram: 3 + 3 of m^2 n, 15 of m^3
        ((37, 24), jnp.float16, 21),
        ((24, 37), jnp.bfloat16, 18),  # the Gram form does not exist in bfloat16
        ((512, 700), None, 54),  # blocks: 4 products instead of 1, twice per step
        ((512, 1024), None, 75),
    ],
)
def test_the_fast_form_suits_the_shape(shape, dtype, count):
    assert products(lambda x: fast_newton_schulz(x, dtype=dtype), shape) == count


@pytest.mark.slow
def test_the_fast_form_costs_what_its_documentation_says():
    m, n = 512, 1536
    expected = 6 * m * m * n * (0.625 + 1) + 30 * 0.625 * m**3
    counted = flops(fast_newton_schulz, (m, n))
    assert expected <= counted <= 1.03 * expected  # the rest is elementwise
    assert counted < 0.6 * flops(newton_schulz, (m, n))


def test_default_restarts_come_before_every_second_step():
    single = jnp.dtype(jnp.float32)
    assert [checked_restarts(None, steps, single) for steps in (1, 2, 3, 5, 6, 8)] == [
        (), (), (2,), (2, 4), (2, 4), (2, 4, 6)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("restarts", "dtype", "message"),
    [
        ((4, 2), None, r"restarts=\(4, 2\) must be increasing step numbers from 1 to 5"),
        ((0, 2, 4), None, r"restarts=\(0, 2, 4\) must be increasing"),
        ((2, 4, 6), None, r"restarts=\(2, 4, 6\) must be increasing"),
        ((2,), None, r"restarts=\(2,\) leaves 4 of 6 steps.*float32 more than 3.*\(2, 4\) here"),
        ((3, 5), jnp.float16, r"restarts=\(3, 5\) leaves 3 of 6 steps.*float16 more than 2"),
        (
            None,
            jnp.bfloat16,
            r"dtype=bfloat16 is not accurate enough for the Gram form.*Use float16",
        ),
    ],
)
def test_unstable_combinations_are_refused(restarts, dtype, message):
    with pytest.raises(ValueError, match=message):
        gram_newton_schulz(jnp.ones((3, 5)), restarts=restarts, dtype=dtype)


def test_gram_dtypes():
    assert gram_dtype(None) == jnp.float32
    assert gram_dtype("float16") == jnp.float16
