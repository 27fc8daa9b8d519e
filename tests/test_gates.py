"""The threshold gate: decisions, selection, state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import heavy_ball, orthogonalize, threshold_gate
from mimuon_jax.diagnostics import gate_rate, has_gate
from mimuon_jax.linalg import measures

RANDOM = np.random.default_rng(0)
TREE = {
    "w": RANDOM.standard_normal((4, 6)).astype(np.float32),
    "scanned": RANDOM.standard_normal((4, 3, 6)).astype(np.float32)
    * np.array([0.1, 10.0, 1e-3, 1.0], np.float32)[:, None, None],
    "swapped": RANDOM.standard_normal((6, 3, 4)).astype(np.float32)
    * np.array([0.1, 10.0, 1e-3, 1.0], np.float32),
    "bias": RANDOM.standard_normal((5,)).astype(np.float32),
}
NUMBERS = {"scanned": Numbers(1, 2), "swapped": Numbers(1, 0)}


def gate(threshold, **options):
    return threshold_gate(optax.scale(-1.0), threshold=threshold, matrices=NUMBERS, **options)


def exact_gap(x):
    """Smallest gap between singular values, float64."""
    return np.min(-np.diff(np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)))


@pytest.mark.parametrize("measure", ["rms", "gap", "spectral", "frobenius", measures.rms])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_decisions_are_per_matrix(measure, jit):
    oracle = {
        "rms": lambda x: np.linalg.norm(x) / np.sqrt(min(x.shape)),
        "gap": exact_gap,
        "spectral": lambda x: np.linalg.norm(x, 2),
        "frobenius": np.linalg.norm,
    }[measure if isinstance(measure, str) else "rms"]
    tx = gate(0.5, measure=measure)
    updates, state = (jax.jit(tx.update) if jit else tx.update)(TREE, tx.init(TREE))
    slices = {
        "w": (TREE["w"][None], np.asarray(updates["w"])[None]),
        "scanned": (TREE["scanned"], np.asarray(updates["scanned"])),
        "swapped": (
            TREE["swapped"].transpose(2, 1, 0),
            np.asarray(updates["swapped"]).transpose(2, 1, 0),
        ),
    }
    opened = []
    for name, (before, after) in slices.items():
        measured = np.array([oracle(x.astype(np.float64)) for x in before])
        np.testing.assert_allclose(
            np.ravel(state.measured[name]), measured, rtol=0.02
        )  # power iteration
        np.testing.assert_array_equal(np.ravel(state.open[name]), measured >= 0.5)
        for x, y, is_open in zip(before, after, measured >= 0.5, strict=True):
            np.testing.assert_array_equal(y, -x if is_open else x)
        opened += list(measured >= 0.5)
    assert 0 < sum(opened) < len(opened)
    np.testing.assert_array_equal(updates["bias"], -TREE["bias"])
    np.testing.assert_allclose(state.rate, np.mean(opened))
    np.testing.assert_allclose(gate_rate(state), np.mean(opened))


def test_extremes():
    tree = {"w": jnp.asarray(TREE["w"]), "null": jnp.zeros((4, 6)), "row": jnp.ones((1, 6))}
    for measure in ("rms", "gap", "spectral", "frobenius"):
        for threshold, expected in ((0.0, 1.0), (0, 1.0), (float("inf"), 0.0)):
            tx = threshold_gate(optax.identity(), threshold=threshold, measure=measure)
            assert float(tx.update(tree, tx.init(tree))[1].rate) == expected


def test_without_a_pair_of_singular_values_the_gap_is_open():
    tree = {"null": jnp.zeros((4, 6)), "row": jnp.full((1, 6), 1e-9), "one": jnp.ones((4, 6))}
    tx = threshold_gate(orthogonalize("svd"), threshold=1e9, measure="gap")
    updates, state = tx.update(tree, tx.init(tree))
    assert float(state.rate) == 1
    np.testing.assert_array_equal(updates["null"], tree["null"])
    np.testing.assert_allclose(jnp.linalg.norm(updates["one"]), 1, rtol=1e-5)


def test_any_pair_of_transformations():
    tx = gate(0.5, otherwise=heavy_ball(0.5))
    _, state = tx.update(TREE, tx.init(TREE))
    updates, _ = tx.update(TREE, state)
    np.testing.assert_array_equal(updates["w"], -TREE["w"])
    np.testing.assert_allclose(updates["scanned"][2], 1.5 * TREE["scanned"][2], rtol=1e-6)


def test_a_measure_that_is_nan_closes_the_gate():
    tree = {"w": jnp.asarray(TREE["w"])}
    tx = threshold_gate(optax.identity(), threshold=0.0, measure=lambda x: x[..., 0, 0] * jnp.nan)
    assert float(tx.update(tree, tx.init(tree))[1].rate) == 0


@pytest.mark.parametrize("threshold", [-1.0, -1e-30, float("nan"), float("-inf")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="must be >= 0"):
        threshold_gate(optax.identity(), threshold=threshold)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_measure_names_the_alternatives():
    with pytest.raises(ValueError, match="'norm' is unknown; use 'gap', 'rms'"):
        threshold_gate(optax.identity(), threshold=1.0, measure="norm")


def test_a_closed_batch_is_not_orthogonalized():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(x.shape))
        return x

    tx = threshold_gate(orthogonalize(counted, matrices=NUMBERS), threshold=0.5, matrices=NUMBERS)
    update = jax.jit(tx.update)
    for scale, expected in ((1e-6, 0), (1.0, 2)):
        calls.clear()
        tree = jax.tree.map(lambda x: x * np.float32(scale), TREE)  # noqa: B023
        jax.block_until_ready(update(tree, tx.init(tree)))
        jax.effects_barrier()
        assert len(calls) == expected


def test_gate_rate_needs_a_gate():
    assert not has_gate(optax.EmptyState())
    with pytest.raises(ValueError, match="no threshold gate"):
        gate_rate(optax.EmptyState())


@pytest.mark.parametrize(("measure", "kind"), [("rms", AxisType.Explicit), ("gap", AxisType.Auto)])
def test_decisions_do_not_depend_on_the_mesh(measure, kind):
    tree = {"kernel": TREE["scanned"], "conv": {"kernel": np.ones((2, 2, 4, 3), np.float32)}}
    numbers = {"kernel": Numbers((0, 1), 2)}
    tx = threshold_gate(
        orthogonalize("svd", matrices=numbers), threshold=1.0, measure=measure, matrices=numbers
    )
    expected, alone = jax.jit(tx.update)(tree, tx.init(tree))
    mesh = jax.make_mesh((4, 2), ("fsdp", "data"), axis_types=(kind, kind))
    specs = {"kernel": P("fsdp"), "conv": {"kernel": P(None, None, "fsdp")}}
    sharded = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)
    with jax.set_mesh(mesh):
        updates, state = jax.jit(tx.update)(sharded, jax.jit(tx.init)(sharded))
    jax.tree.map(np.testing.assert_array_equal, state.open, alone.open)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), state[1:3], alone[1:3])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), updates, expected)
    assert updates["kernel"].sharding.is_equivalent_to(sharded["kernel"].sharding, 3)
