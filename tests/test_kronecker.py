"""SOAP's basis: where SOAP and SOAP-Muon equal other optimizers, and what their state is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mimuon_jax as mj
from tests.contract import GRADIENTS, PARAMS, assert_close, like, matrices, run_eagerly

pytestmark = pytest.mark.standard_promotion

SVD = {"orthogonalizer": "svd", "auxiliary": optax.sgd(0.1)}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def updates_of(tx, gradients):
    state, found, step = tx.init(gradients[0]), [], jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, gradients[0])
        found.append(updates)
    return found, state


@pytest.mark.slow
def test_soap_muon_of_power_0_is_muon():
    actual, _ = run_eagerly(mj.soap_muon(0.1, power=0.0, **SVD), GRADIENTS[:4])
    expected, _ = run_eagerly(mj.muon(0.1, **SVD), GRADIENTS[:4])
    assert_close(actual, expected, rtol=1e-5)


def test_without_a_basis_soap_muon_divides_entry_by_entry():
    """Muon^2, with the second moment of the momentum."""
    b, v = [x["wide"] for x in GRADIENTS[:3]], 0.0
    tx = mj.precondition_kron(mj.heavy_ball(0.0), decay=0.8, power=0.25, max_dim=2)
    actual, _ = updates_of(tx, [{"w": x} for x in b])
    for x, update in zip(np.asarray(b, np.float64), actual, strict=True):
        v = 0.8 * v + 0.2 * x**2
        y = x / v**0.25
        np.testing.assert_allclose(
            update["w"], y * np.linalg.norm(x) / np.linalg.norm(y), rtol=1e-5
        )


def test_without_a_basis_soap_is_adam_from_the_second_step_on():
    first, *others = GRADIENTS[:4]
    (zero, *actual), _ = updates_of(mj.scale_by_soap(0.9, 0.99, max_dim=1), [first, *others])
    assert not any(np.any(x) for x in matrices(zero))
    expected, _ = updates_of(optax.scale_by_adam(0.9, 0.99), others)
    assert_close(matrices(actual), matrices(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (mj.soap, "both"),
        *(
            pytest.param(make, sides, marks=pytest.mark.slow)
            for make in (mj.soap, mj.soap_muon)
            for sides in ("both", "reduction", "output")
            if (make, sides) != (mj.soap, "both")
        ),
    ],
)
def test_rotated_gradients_give_rotated_updates(make, sides):
    gradients = [normal(seed, 4, 4) + 3 * jnp.diag(jnp.arange(1.0, 5)) for seed in range(3)]
    left, right = (jnp.linalg.qr(normal(seed, 4, 4))[0] for seed in (7, 8))
    one = jnp.eye(4)  # a side without a basis may be turned, but its entries are seen
    left, right = (
        one if sides == other else q for other, q in (("output", left), ("reduction", right))
    )
    tx = make(1.0, sides=sides, update_every=1)
    expected, _ = updates_of(tx, [{"w": g} for g in gradients])
    actual, _ = updates_of(tx, [{"w": left @ g @ right} for g in gradients])
    for x, y in zip(actual, expected, strict=True):
        rotated = left @ y["w"] @ right
        np.testing.assert_allclose(x["w"], rotated, atol=2e-4 * np.abs(rotated).max(initial=0))


def test_the_vectors_are_orthonormal_and_find_the_eigenvectors():
    gradients = [{"w": jnp.stack([normal(1, 5, 3), normal(2, 5, 3)])}] * 3
    numbers = {"w": optax.contrib.MuonDimensionNumbers(1, 2)}
    tx = mj.precondition_kron(mj.heavy_ball(0.5), matrices=numbers)
    _, state = updates_of(tx, gradients)
    both = state.sides["w"]
    for side, gram in ((both.left, lambda g: g @ g.T), (both.right, lambda g: g.T @ g)):
        for q, g in zip(np.asarray(side.vectors), np.asarray(gradients[0]["w"]), strict=True):
            np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)
            diagonal = q.T @ gram(g) @ q
            np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-4)
            values = np.diag(diagonal)
            np.testing.assert_allclose(values, np.sort(values)[::-1], atol=1e-4)


SHAPES = {
    "both": [(1, 3, 3), (1, 5, 5)],
    "shorter": [(1, 3, 3)],
    "output": [(1, 5, 5)],
}


@pytest.mark.parametrize(
    ("sides", "max_dim"), [("both", 9), ("shorter", 9), ("output", 9), ("both", 4)]
)
def test_only_the_chosen_sides_have_state(sides, max_dim):
    tx = mj.precondition_kron(optax.identity(), sides=sides, max_dim=max_dim)
    state = tx.init({"w": normal(0, 3, 5), "bias": jnp.ones(3)})
    found = [x.shape for x in jax.tree.leaves(state.sides) if x.shape[1:] != (1, 1)]
    assert found[::2] == found[1::2]  # statistics and vectors
    assert found[::2] == [shape for shape in SHAPES[sides] if shape[1] <= max_dim]
    assert state.v["w"].shape == (3, 5)
    assert isinstance(state.v["bias"], optax.MaskedNode)


@pytest.mark.parametrize("name", ["soap", pytest.param("soap_muon", marks=pytest.mark.slow)])
def test_the_state_can_be_mapped_and_donated(name):
    tx = getattr(mj, name)(0.1)
    state = tx.init(PARAMS)
    half = optax.tree_map_params(tx, lambda x: x.astype(jnp.bfloat16), state)
    kept = [x for x in jax.tree.leaves(half) if x.dtype == jnp.bfloat16]
    assert {(3, 5), (5, 3)} <= {x.shape for x in kept}
    step = jax.jit(tx.update, donate_argnums=1)
    _, state = step(GRADIENTS[0], state, PARAMS)
    updates, _ = step(GRADIENTS[0], state, PARAMS)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))


def test_the_second_moment_and_the_basis_are_float32_of_bfloat16():
    tx = mj.precondition_kron(mj.heavy_ball(0.5))
    state = tx.init(like(PARAMS, jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves((state.v, state.sides))} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_soap_does_not_depend_on_the_scale_of_gradients(scale):
    """Beyond `eps`, which is in their unit."""
    gradients = [{"w": x["wide"]} for x in GRADIENTS[:3]]
    scaled = jax.tree.map(lambda x: scale * x, gradients)
    tx = functools.partial(mj.scale_by_soap, sides="shorter", update_every=1)
    actual, _ = updates_of(tx(eps=1e-8 * scale), scaled)
    expected, _ = updates_of(tx(eps=1e-8), gradients)
    assert_close(actual, expected, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sides": "left"},
            "sides='left' is unknown; use 'both', 'reduction', 'output', 'shorter'",
        ),
        ({"max_dim": 0}, "max_dim=0 must be a Python int >= 1"),
        ({"eps": 0.0}, "eps=0.0 must be a positive number"),
        ({"power": -1.0}, "power=-1.0 must be >= 0"),
        ({"decay": 1.0}, r"decay=1.0 must be in \[0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mj.precondition_kron(mj.heavy_ball(0.9), **settings)
