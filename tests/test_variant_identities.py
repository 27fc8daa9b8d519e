"""Where variants of Muon equal Muon or each other, and what they keep."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mimuon_jax
from mimuon_jax import muon, normalize_units, orthogonalize, threshold_gate
from tests.contract import assert_close
from tests.test_identities import GRADIENTS, PARAMS, RATE, SETTINGS, walk

pytestmark = pytest.mark.standard_promotion

NUMBERS = {"matrices": SETTINGS["matrices"]}
SVD = {"orthogonalizer": "svd", **NUMBERS}


def assert_near(actual, expected, rtol=1e-5):
    """Equal up to the rounding of two ways to compute the same."""
    assert_close(actual, expected, rtol=rtol)


def test_normuon_at_beta2_1_is_muon():
    settings = SETTINGS | {"weight_decay": 0.1, "gain": "rms"}
    expected = walk(muon(RATE, **settings), jit=True)
    for per in ("output", "longer", "scalar"):
        actual = walk(mimuon_jax.normuon(RATE, beta2=1.0, per=per, **settings), jit=True)
        assert_near(actual, expected)


def test_normuon_of_exact_factors_with_few_outputs_is_muon():
    """All outputs of a tall or square matrix have norm 1: its statistic is constant."""
    params = {"tall": PARAMS["wide"].T, "square": PARAMS["wide"][:, :4]}
    normuon, plain = (f(RATE, orthogonalizer="svd") for f in (mimuon_jax.normuon, muon))
    states = normuon.init(params), plain.init(params)
    for gradient in GRADIENTS:
        gradient = {"tall": gradient["wide"].T, "square": gradient["wide"][:, :4]}
        actual, first = normuon.update(gradient, states[0], params)
        expected, second = plain.update(gradient, states[1], params)
        states = first, second
        assert_near(actual, expected)


def test_at_beta2_0_all_neurons_of_normuon_have_the_same_norm():
    tx = normalize_units(0.0)
    updates, _ = tx.update({"w": GRADIENTS[0]["wide"]}, tx.init({"w": GRADIENTS[0]["wide"]}))
    lengths = np.linalg.norm(np.asarray(updates["w"]), axis=0)
    size = np.linalg.norm(np.asarray(GRADIENTS[0]["wide"]))
    np.testing.assert_allclose(lengths, size / 7**0.5, rtol=1e-5)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.99])
def test_the_first_update_of_adamuon_is_signs_and_every_one_has_its_rms(beta2):
    tx = mimuon_jax.adamuon(1.0, beta2=beta2, **SVD)
    state = tx.init(PARAMS)
    for step, gradient in enumerate(GRADIENTS):
        updates, state = tx.update(gradient, state, PARAMS)
        for name in ("wide", "scanned"):
            u = np.asarray(updates[name])
            np.testing.assert_allclose(np.sqrt(np.mean(u**2, axis=(-2, -1))), 0.2, rtol=1e-5)
            if step == 0:
                orths = mimuon_jax.polar(jnp.sign(gradient[name]))
                np.testing.assert_allclose(u, -0.2 * np.sign(orths), atol=1e-5)


def test_a_closed_gate_leaves_the_statistic_as_it_is():
    pieces = optax.chain(orthogonalize("jordan"), normalize_units(0.5))
    tx = threshold_gate(pieces, threshold=1.0, measure="rms")
    grads = {"large": 3 * jnp.eye(3), "small": 0.1 * jnp.eye(3)}
    _, state = tx.update(grads, tx.init(grads))
    statistic = state.inner[1].v
    assert np.all(np.asarray(statistic["large"]) > 0)
    assert not np.any(np.asarray(statistic["small"]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.5}, r"decay=1.5 must be in \[0, 1\]"),
        ({"per": "row"}, "per='row' is unknown; use 'output', 'longer', 'element', 'scalar'"),
        ({"restore": "rms"}, "restore=rms must be 'norm', None or"),
        ({"restore": 0.0}, "restore=0.0 must be 'norm', None or"),
    ],
)
def test_normalize_units_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        normalize_units(**{"decay": 0.9} | arguments)
