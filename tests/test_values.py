"""Unusual values: complex parameters and momenta beyond the range of float16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimuon_jax import ema, heavy_ball, muon, mvr1, mvr2, sgdm
from mimuon_jax.linalg.measures import frobenius_along
from tests import contract

pytestmark = pytest.mark.standard_promotion
COMPLEX = jnp.asarray([1 + 2j, -3j, 0.5 + 0j], jnp.complex64)


@pytest.mark.parametrize(
    "tx",
    [
        heavy_ball(0.5),
        heavy_ball(0.5, nesterov=True, accumulator_dtype=jnp.bfloat16),
        ema(0.5, debias=True),
        ema(0.5, nesterov=True),
        mvr1(0.5, 0.3),
        mvr2(0.5, 0.3),
        sgdm(0.1, nesterov=True),
    ],
)
def test_a_complex_vector_is_its_real_and_imaginary_part(tx):
    def updates_of(*gradients):
        state, found = tx.init(gradients[0]), []
        for gradient in gradients:
            updates, state = contract.update(tx, gradient, state, gradients[0])
            found.append(updates)
        return jnp.stack(found)

    factors = (1.0, -0.5, 2.0)
    actual = updates_of(*(f * COMPLEX for f in factors))
    assert actual.dtype == jnp.complex64
    # The second gradient of mvr2 has a real constant, which the imaginary part does not see.
    real = updates_of(*(f * COMPLEX.real for f in factors))
    np.testing.assert_allclose(actual.real, real, rtol=0.02, atol=1e-6)
    assert np.abs(actual.imag).max() > 0.1


@pytest.mark.usefixtures("unchecked")
@contract.every_optimizer
def test_complex_parameters_lose_nothing(name):
    tx, vector = contract.make(name), {"vector": COMPLEX}
    params = vector | {"w": jnp.outer(COMPLEX, COMPLEX)}
    if name != "sgdm":  # refused before anything is lost, with the place
        with pytest.raises(ValueError, match="needs a real floating-point array; got complex64"):
            contract.update(tx, params, tx.init(params), params)
        params = vector
    updates = contract.update(tx, params, tx.init(params), params)[0]
    for path, update in updates.items():
        assert update.dtype == jnp.complex64, path
        assert np.abs(update.imag).max() > 0


@pytest.mark.usefixtures("unchecked")
def test_a_norm_of_complex_matrices():
    x = jnp.outer(COMPLEX, COMPLEX)
    np.testing.assert_allclose(frobenius_along(x, (0, 1)), np.linalg.norm(x), rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.95, ema(0.95)], ids=["heavy_ball", "ema"])
def test_a_float16_momentum_beyond_its_range(momentum):
    params = {"w": jnp.ones((4, 4), jnp.float16), "bias": jnp.ones(4, jnp.float16)}
    gradients = jax.tree.map(lambda x: 4000 * jnp.ones_like(x), params)
    tx = muon(0.01, momentum=momentum, auxiliary=sgdm(1e-6, momentum=0.95))
    updates, state = gradients, tx.init(params)
    for _ in range(40):
        updates, state = tx.update(gradients, state, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    moved = optax.apply_updates(params, updates)
    assert jax.tree.map(lambda x: x.dtype, moved) == jax.tree.map(lambda x: x.dtype, params)
    np.testing.assert_allclose(updates["w"], -0.01 / 4 * np.ones((4, 4)), rtol=0.02)
