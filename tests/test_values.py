"""Unusual values: complex parameters, ranges of float16, Python numbers, missing gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import (
    POLAR_EXPRESS,
    ema,
    heavy_ball,
    muon,
    musgd,
    mvr1,
    mvr2,
    orthogonalize,
    sgdm,
    spectral_adam,
)
from mimuon_jax.linalg.measures import MEASURES, frobenius_along
from mimuon_jax.transforms.orthogonalize import ORTHOGONALIZERS
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


def unitary(seed, size, *, is_diagonal=False):
    """A random unitary matrix."""
    random = np.random.default_rng(seed)
    if is_diagonal:
        return np.diag(np.exp(2j * np.pi * random.random(size)))
    real, imaginary = random.standard_normal((2, size, size))
    return np.linalg.qr(real + 1j * imaginary)[0]


#: Optimizers that scale by rows, entries or norms of real matrices refuse complex ones.
TAKE_COMPLEX = {"from_optax_muon", "mimuon", "muon", "muon_mvr1", "muon_mvr2", "musgd", "sgdm"}
TAKE_COMPLEX |= {"muonclip", "scion", "shampoo", "spectral_adam", "spectral_sgd"}


@contract.mostly_slow(contract.OPTIMIZERS)
def test_complex_matrices_are_orthogonalized_as_such(name):
    # Adam sees the entries one by one, and no others: only their phases may change.
    phases = {"is_diagonal": name == "spectral_adam"}
    left, right = unitary(0, 3, **phases), unitary(1, 5, **phases)
    exact = {"orthogonalizer": "svd", "gain": "rms"}
    settings = {key: value for key, value in exact.items() if key in contract.parameters(name)}
    if name == "from_optax_muon":  # whose iteration sees a norm sqrt(2) times as large
        settings = {"ns_coeffs": POLAR_EXPRESS.triples, "ns_steps": 6}
    real = [{"w": tree["wide"]} for tree in contract.GRADIENTS[:2]]
    rotated = [{"w": jnp.asarray(left @ tree["w"] @ right, jnp.complex64)} for tree in real]
    tx = optax.with_extra_args_support(contract.make(name, **settings))
    step = functools.partial(contract.update, tx, grad_fn=lambda params: params)
    expected, _ = contract.run(step, tx.init(real[0]), real, real[0])
    if name not in TAKE_COMPLEX:  # before anything is lost
        with pytest.raises(ValueError, match="parameter 'w' needs a real floating-point array"):
            contract.run(step, tx.init(rotated[0]), rotated, rotated[0])
        return
    actual, _ = contract.run(step, tx.init(rotated[0]), rotated, rotated[0])
    for x, y in zip(actual, expected, strict=True):
        assert x["w"].dtype == jnp.complex64
        size = np.abs(y["w"]).max()
        bar = 0.02 if name == "from_optax_muon" else 2e-4
        np.testing.assert_allclose(x["w"], left @ y["w"] @ right, atol=bar * size)


@pytest.mark.parametrize("orthogonalizer", ORTHOGONALIZERS)
@pytest.mark.parametrize("shape", [(3, 7), (6, 2)])
def test_every_orthogonalizer_of_complex_matrices(orthogonalizer, shape):
    random = np.random.default_rng(2)
    x = random.standard_normal((2, *shape)) + 1j * random.standard_normal((2, *shape))
    tx = orthogonalize(orthogonalizer, matrices={"w": Numbers(1, 2)})
    params = {"w": jnp.asarray(x, jnp.complex64)}
    y = np.asarray(tx.update(params, tx.init(params))[0]["w"])
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    aligned = u.conj().mT @ y @ vh.conj().mT  # diagonal, with what became of the singular values
    values = np.diagonal(aligned, axis1=1, axis2=2)
    assert np.abs(aligned - values[..., None] * np.eye(min(shape))).max() < 1e-4
    loose = orthogonalizer in ("jordan", "dion")
    bar = 1e-5 if orthogonalizer == "svd" else 0.35 if loose else 0.01
    assert np.abs(values - 1).max() < bar


def test_complex_matrices_on_a_mesh():
    x = jnp.outer(COMPLEX, COMPLEX).repeat(4, axis=1) + jnp.eye(3, 12)
    tx = orthogonalize("svd")
    expected = tx.update({"w": x}, tx.init({"w": x}))[0]["w"]
    mesh = jax.make_mesh((2,), ("fsdp",), (AxisType.Auto,))
    sharded = {"w": jax.device_put(x, NamedSharding(mesh, P(None, "fsdp")))}
    actual = jax.jit(tx.update)(sharded, tx.init(sharded))[0]["w"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_complex_matrices(name):
    # Rotated by unitary matrices, the singular values stay the same.
    s = np.eye(3, 5) * [[7.0], [2.0], [1.5]]
    x = jnp.asarray(unitary(0, 3) @ s @ unitary(1, 5), jnp.complex64)
    np.testing.assert_allclose(MEASURES[name](x), MEASURES[name](jnp.asarray(s)), rtol=1e-5)


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


@pytest.mark.parametrize("tx", [muon(0.01, auxiliary_weight_decay=0.1), spectral_adam(0.01)])
def test_float16_gradients_whose_squares_are_beyond_its_range(tx):
    params = {"w": jnp.ones((2, 2), jnp.float16), "bias": jnp.ones(2, jnp.float16)}
    gradients = jax.tree.map(lambda x: 4000 * x, params)
    wide = [contract.like(tree, jnp.float32) for tree in (gradients, params)]
    actual, state = contract.run_eagerly(tx, [gradients] * 2, params)
    expected, _ = contract.run_eagerly(tx, [wide[0]] * 2, wide[1])
    assert contract.finite(state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.02), actual, expected)
    fresh = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(lambda x: x.dtype, fresh)


@pytest.mark.parametrize("tx", [muon(0.1), musgd(0.1), sgdm(0.1), spectral_adam(0.1), mvr1(0.5)])
def test_a_python_number_is_a_scalar_parameter(tx):
    trees = [{"w": jnp.eye(2), "t": t} for t in (0.5, jnp.float32(0.5))]
    one, other = (contract.run_eagerly(tx, [tree] * 2, tree) for tree in trees)
    contract.assert_equal(one, other)


@pytest.mark.parametrize("gradient", [{"b": None}, {}], ids=["None", "missing"])
@pytest.mark.parametrize("path", ["w", "b"])
@contract.every_optimizer
def test_a_gradient_that_is_absent_is_one_clear_line(name, gradient, path):
    params = {"w": jnp.eye(2), "b": jnp.ones(2)}
    gradients = {key: x for key, x in params.items() if key != path}
    gradients |= {path: None} if gradient else {}
    tx = contract.make(name)
    with pytest.raises(ValueError, match=rf"^the gradient of parameter '{path}' is None or missi"):
        contract.update(tx, gradients, tx.init(params), params)


def test_a_gradient_too_many_is_one_clear_line():
    params = {"w": jnp.eye(2), "b": jnp.ones(2)}
    tx = muon(0.1)
    with pytest.raises(ValueError, match="there is a gradient for 'c', which is not a parameter"):
        tx.update(params | {"c": jnp.ones(2)}, tx.init(params), params)


def test_a_gradient_of_another_shape_is_one_clear_line():
    params = {"norm": optax.MaskedNode(), "w": jnp.ones((2, 3))}
    tx = muon(0.1)
    said = r"^the gradient of parameter 'w' has the shape \(3, 2\), and the parameter \(2, 3\)"
    with pytest.raises(ValueError, match=said):
        tx.update(params | {"w": jnp.ones((3, 2))}, tx.init(params), params)


@pytest.mark.parametrize("tx", [heavy_ball(0.5), ema(0.5), mvr1(0.5)])
def test_an_estimate_finds_a_missing_gradient_without_parameters(tx):
    state = tx.init({"w": jnp.eye(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="the gradient of parameter 'b' is None or missing"):
        tx.update({"w": jnp.eye(2), "b": None}, state)
