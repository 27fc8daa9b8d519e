"""Diagnostics against NumPy, with batch axes in any position."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import diagnostics, mimuon, orthogonalize, threshold_gate

pytestmark = pytest.mark.standard_promotion

RANDOM = np.random.default_rng(0)
TREE = {
    "w": RANDOM.standard_normal((4, 6)).astype(np.float32),
    "scanned": RANDOM.standard_normal((6, 3, 4)).astype(np.float32),  # [output, layers, reduction]
    "bias": RANDOM.standard_normal((5,)).astype(np.float32),
}
NUMBERS = {"scanned": Numbers(2, 0)}
SLICES = {"w": TREE["w"], "scanned": TREE["scanned"].transpose(1, 2, 0)}


def spectra(x):
    return np.linalg.svd(x.astype(np.float64), compute_uv=False)


def error(s):
    squares = s**2 / np.mean(s**2, axis=-1, keepdims=True)
    return np.sqrt(np.mean((squares - 1) ** 2, axis=-1))


@pytest.mark.parametrize(
    ("function", "oracle", "rtol"),
    [
        (diagnostics.orthogonality_error, error, 1e-5),
        (diagnostics.stable_rank, lambda s: (s**2).sum(-1) / s.max(-1) ** 2, 2e-2),
        (
            diagnostics.singular_value_quantiles,
            lambda s: np.moveaxis(np.quantile(s, [0, 0.25, 0.5, 0.75, 1], axis=-1), 0, -1),
            1e-4,
        ),
    ],
    ids=["orthogonality_error", "stable_rank", "singular_value_quantiles"],
)
def test_every_matrix_against_its_spectrum(function, oracle, rtol):
    values = jax.jit(lambda tree: function(tree, matrices=NUMBERS))(TREE)
    assert values.keys() == {"w", "scanned"}
    for path, x in SLICES.items():
        np.testing.assert_allclose(values[path], oracle(spectra(x)), rtol=rtol)


def test_extremes():
    tree = {"null": jnp.zeros((3, 4)), "one": jnp.ones((3, 4)), "eye": jnp.eye(3, 4)}
    errors, ranks = diagnostics.orthogonality_error(tree), diagnostics.stable_rank(tree)
    assert float(errors["null"]) == float(ranks["null"]) == 0
    np.testing.assert_allclose(errors["one"], np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose([errors["eye"], ranks["eye"]], [0, 3], atol=1e-5)


def test_update_rms_is_of_every_array():
    values = diagnostics.update_rms(TREE)
    for path, x in TREE.items():
        np.testing.assert_allclose(values[path], np.sqrt(np.mean(x**2)), rtol=1e-6)


def test_gates_are_found_and_named_in_any_state():
    tx = optax.chain(optax.clip(1e9), mimuon(0.02, threshold=1.0, matrices=NUMBERS))
    _, state = tx.update(TREE, tx.init(TREE), TREE)
    decisions, measures = diagnostics.gate_decisions(state), diagnostics.gate_measures(state)
    assert decisions.keys() == measures.keys() == {"w", "scanned"}
    for path, x in SLICES.items():
        expected = np.linalg.norm(x, axis=(-2, -1)) / 2
        np.testing.assert_allclose(measures[path], expected, rtol=1e-5)
        np.testing.assert_array_equal(decisions[path], expected >= 1)
    together = np.concatenate([np.ravel(x) for x in decisions.values()])
    np.testing.assert_allclose(diagnostics.gate_rate(state), together.mean())


def test_nested_gates_report_the_outermost():
    inner = threshold_gate(orthogonalize("svd"), threshold=0.0)
    tx = threshold_gate(inner, threshold=float("inf"))
    tree = {"w": jnp.asarray(TREE["w"])}
    _, state = tx.update(tree, tx.init(tree))
    assert len(diagnostics.gates(state)) >= 1
    assert not bool(diagnostics.gate_decisions(state)["w"])
