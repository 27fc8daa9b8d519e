"""Gradient estimates against their recursions and optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import ema, heavy_ball
from mimuon_jax.transforms.momentum import with_nesterov
from tests.contract import assert_close

GRADIENTS = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)


def run(tx, gradients=GRADIENTS):
    """The updates of a transformation, step by step."""
    state, passed_on = tx.init(jnp.zeros_like(gradients[0])), []
    for gradient in gradients:
        estimate, state = jax.jit(tx.update)(jnp.asarray(gradient), state)
        passed_on.append(np.asarray(estimate))
    return np.stack(passed_on)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_heavy_ball_is_its_recursion(decay, nesterov):
    m, expected = np.zeros((3, 4)), []
    for g in GRADIENTS.astype(np.float64):
        m = decay * m + g
        expected.append(decay * m + g if nesterov else m)
    np.testing.assert_allclose(
        run(heavy_ball(decay, nesterov=nesterov)), expected, rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("start", ["zero", "gradient"])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_is_its_recursion(decay, start, nesterov):
    m, expected = np.zeros((3, 4)), []
    for step, g in enumerate(GRADIENTS.astype(np.float64)):
        m = g if step == 0 and start == "gradient" else decay * m + (1 - decay) * g
        expected.append(decay * m + (1 - decay) * g if nesterov else m)
    actual = run(ema(decay, start=start, nesterov=nesterov))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


def test_heavy_ball_equals_optax_trace():
    for nesterov in (False, True):
        ours, theirs = heavy_ball(0.9, nesterov=nesterov), optax.trace(0.9, nesterov=nesterov)
        assert_close(run(ours), run(theirs))


def test_debiased_ema_equals_optax():
    with jax.numpy_dtype_promotion("standard"):  # both: optax's own correction
        np.testing.assert_allclose(run(ema(0.9, debias=True)), run(optax.ema(0.9)), rtol=5e-6)


def test_with_nesterov_is_the_option():
    for factory in (heavy_ball, ema):
        ours = run(with_nesterov(factory(0.9)))
        assert_close(ours, run(factory(0.9, nesterov=True)))
        assert np.any(ours != run(factory(0.9)))


def test_the_look_ahead_of_a_foreign_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov=False"):
        with_nesterov(optax.trace(0.9))


@pytest.mark.parametrize("factory", [heavy_ball, ema])
@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range_is_refused(factory, decay):
    with pytest.raises(ValueError, match=r"decay=.* must be in \[0, 1\)"):
        factory(decay)


@pytest.mark.usefixtures("unchecked")
def test_options_of_ema_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="start='one' is unknown"):
        ema(0.9, start="one")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="debias"):
        ema(0.9, debias=True, start="gradient")


@pytest.mark.parametrize("factory", [heavy_ball, ema])
def test_dtypes_of_state_and_result(factory):
    gradients = jnp.asarray(GRADIENTS, jnp.bfloat16)
    for accumulator, expected in ((None, jnp.bfloat16), (jnp.float32, jnp.float32)):
        tx = factory(0.9, accumulator_dtype=accumulator)
        estimate, state = tx.update(gradients[0], tx.init(gradients[0]))
        assert estimate.dtype == jnp.bfloat16
        assert state.mu.dtype == expected


def test_a_float32_accumulator_keeps_what_bfloat16_loses():
    # 2^-10 is less than half a unit in the last place of a bfloat16 between 1 and 2 (2^-8).
    gradients = jnp.concatenate([jnp.ones((1, 1)), jnp.full((200, 1), 2**-10)])
    narrow = gradients.astype(jnp.bfloat16)
    exact = run(heavy_ball(0.9999), np.asarray(gradients))[-1]
    kept = run(heavy_ball(0.9999, accumulator_dtype=jnp.float32), narrow)[-1]
    lost = run(heavy_ball(0.9999), narrow)[-1]
    assert abs(kept - exact) < 2**-7 < 0.1 < abs(lost - exact)
