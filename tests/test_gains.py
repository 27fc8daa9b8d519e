"""Gains: factors that depend on the shape."""

import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import orthogonalize, scale_by_gain
from mimuon_jax.transforms.gains import GAINS, factor_of

TREE = {"up": jnp.full((2, 4, 16), 3.0), "bias": jnp.full((5,), 3.0)}
NUMBERS = {"up": Numbers(1, 2), "bias": None}


@pytest.mark.parametrize(
    ("gain", "factor"),
    [("width", 2.0), ("rms", 0.8), ("spectral", 2.0), (None, 1.0), (lambda m, n: m / n, 0.25)],
)
def test_every_matrix_is_scaled_and_nothing_else(gain, factor):
    tx = scale_by_gain(gain, matrices=NUMBERS)
    updates, _ = tx.update(TREE, tx.init(TREE))
    np.testing.assert_allclose(updates["up"], 3 * factor, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], TREE["bias"])


def test_narrow_matrices():
    assert [GAINS[name](16, 4) for name in ("width", "rms", "spectral")] == [1.0, 0.8, 0.5]


def test_unflattened_is_width_except_for_convolutions():
    factor = factor_of("unflattened")
    assert factor((4, 16), Numbers(0, 1)) == 2.0
    assert factor((1, 1, 4, 16), Numbers((0, 1, 2), 3)) == 1.0
    assert factor_of("width")((1, 1, 4, 16), Numbers((0, 1, 2), 3)) == 2.0


def test_the_option_of_orthogonalize_is_the_piece():
    matrix = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((4, 16)), jnp.float32)}
    whole = orthogonalize("svd", gain="rms")
    bare, piece = orthogonalize("svd"), scale_by_gain("rms")
    expected, _ = whole.update(matrix, whole.init(matrix))
    updates, _ = bare.update(matrix, bare.init(matrix))
    updates, _ = piece.update(updates, piece.init(matrix))
    np.testing.assert_array_equal(updates["w"], expected["w"])


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_gain_names_the_alternatives():
    with pytest.raises(ValueError, match="'widht' is unknown; use 'rms', 'spectral', 'width'"):
        scale_by_gain("widht")
