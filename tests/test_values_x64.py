"""Values beyond the range of float32, under `jax.enable_x64`: computed in float64 throughout."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax import diagnostics, mimuon
from mimuon_jax.linalg.measures import MEASURES
from tests import contract

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def gradients(scale):
    """The first gradients of the suite in float64, times a number."""
    return jax.tree.map(lambda x: scale * np.asarray(x, np.float64), contract.GRADIENTS[0])


def first(tx, scale):
    """The first update from gradients of a scale, and the state after it."""
    params, given = (jax.tree.map(jnp.asarray, gradients(s)) for s in (1.0, scale))
    return contract.update(tx, given, tx.init(params), params)


#: The power of a factor of the gradient by which the updates of matrices grow; if not here, 0.
POWERS = {"spectral_sgd": 0.5, "sgdm": 1.0, "polargrad": 1.0}
SETTINGS = {
    "mimuon": {"threshold": 0.0},
    "musgd": {"sgd_weight": 0.0},
    "spectral_adam": {"eps": 0.0},
    "namo": {"eps": 0.0},
}


@pytest.mark.parametrize("scale", [1e50, 1e-50])
@contract.mostly_slow(name for name in contract.OPTIMIZERS if name != "soap")  # first update: 0
def test_updates_of_matrices(name, scale):
    tx, factor = contract.make(name, **SETTINGS.get(name, {})), scale ** POWERS.get(name, 0.0)
    actual, expected = (contract.matrices(first(tx, s)[0]) for s in (scale, 1.0))
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == jnp.float64
        assert np.abs(y).max() > 1e-6
        np.testing.assert_allclose(x, factor * y, rtol=1e-5, atol=1e-6 * factor)


@pytest.mark.parametrize("scale", [1e50, 1e-50])
@pytest.mark.parametrize("measure", MEASURES)
def test_gates(measure, scale):
    _, state = first(mimuon(0.1, threshold=0.1 * scale, measure=measure), scale)
    decisions, measures = diagnostics.gate_decisions(state), diagnostics.gate_measures(state)
    assert (bool(decisions["wide"]), bool(decisions["block/tall"])) == (True, False)
    own = gradients(1.0)
    for path, x in (("wide", own["wide"]), ("block/tall", own["block"]["tall"])):
        assert measures[path].dtype == jnp.float64
        np.testing.assert_allclose(measures[path], scale * MEASURES[measure](jnp.asarray(x)))


@pytest.mark.parametrize("name", MEASURES)
def test_measures_out_of_float32s_range(name):
    x = np.random.default_rng(0).standard_normal((2, 4, 5))
    for scale in (1e50, 1e-50):
        expected = MEASURES[name](jnp.asarray(x))
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose(MEASURES[name](jnp.asarray(scale * x)), scale * expected)
