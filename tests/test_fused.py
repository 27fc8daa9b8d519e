"""Fused matrices: one parameter, several matrices, each treated as a matrix of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

import mimuon_jax
from mimuon_jax import diagnostics, mimuon, orthogonalize, polar, split_fused, threshold_gate
from tests import contract

RANDOM = np.random.default_rng(0)
EMPTY = optax.EmptyState()

# optax's Adam mixes dtypes.
pytestmark = pytest.mark.standard_promotion


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


SPLITTING = [name for name in contract.OPTIMIZERS if "split" in contract.parameters(name)]


def test_every_optimizer_of_matrices_splits():
    # `from_optax_muon` takes the arguments of `optax.contrib.muon`, which splits nothing.
    assert set(contract.OPTIMIZERS) - set(SPLITTING) == {"sgdm", "from_optax_muon"}


@pytest.mark.parametrize("name", contract.marked(SPLITTING))
def test_a_fused_matrix_is_its_parts(name):
    settings = {"p": 0.0} if name.startswith("spectral") else {}
    apart = contract.make(name, **settings)
    fused = contract.make(name, split={"qk": (2, 4)}, **settings)
    params = {"q": normal(3, 2), "k": normal(3, 4), "bias": normal(3)}
    whole = lambda tree: {  # noqa: E731
        "qk": jnp.concatenate([tree["q"], tree["k"]], axis=1),
        "bias": tree["bias"],
    }
    one, two = apart.init(params), fused.init(whole(params))
    for scale in (1.0, 0.05):
        gradients = jax.tree.map(lambda x, s=scale: s * normal(*x.shape), params)
        expected, one = contract.update(apart, gradients, one, params)
        actual, two = contract.update(fused, whole(gradients), two, whole(params))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-6), actual, whole(expected)
        )


def test_every_part_has_a_gate_of_its_own():
    tx = mimuon(0.1, threshold=1.0, momentum=0.0, split={"qk": (2, 2)}, gain=None)
    grads = {"qk": jnp.concatenate([3 * jnp.eye(2), 0.5 * jnp.eye(2)], axis=1)}
    updates, state = tx.update(grads, tx.init(grads), grads)
    decisions = diagnostics.gate_decisions(state)
    assert {path: bool(x) for path, x in decisions.items()} == {"qk/0": True, "qk/1": False}
    np.testing.assert_allclose(
        updates["qk"], -0.1 * jnp.array([[1, 0, 0.5, 0], [0, 1, 0, 0.5]]), atol=1e-3
    )


def test_a_gate_around_the_split_decides_for_the_whole():
    tx = threshold_gate(
        orthogonalize("svd", split={"qk": (2, 2)}), threshold=1.0, measure="frobenius"
    )
    grads = {"qk": jnp.concatenate([3 * jnp.eye(2), 0.5 * jnp.eye(2)], axis=1), "other": jnp.eye(3)}
    updates, state = tx.update(grads, tx.init(grads))
    assert set(state.open) == {"qk", "other"}
    np.testing.assert_allclose(updates["qk"], jnp.array([[1, 0, 1, 0], [0, 1, 0, 1]]), atol=1e-6)


@pytest.mark.slow
def test_axes_of_both_sides():
    x = normal(4, 6)
    for split, parts in [
        ({"reduction": (1, 3)}, [x[:1], x[1:]]),
        ({"output": (2, 4)}, [x[:, :2], x[:, 2:]]),
        ({"reduction": (1, 3), "output": (2, 4)}, [x[:1, :2], x[:1, 2:], x[1:, :2], x[1:, 2:]]),
    ]:
        updates, _ = orthogonalize("svd", split={"w": split}).update({"w": x}, EMPTY)
        for part, place in zip(parts, np.ndindex(*(len(s) for s in split.values())), strict=True):
            rows = np.split(np.asarray(updates["w"]), [1], axis=0) if "reduction" in split else None
            found = np.asarray(updates["w"]) if rows is None else rows[place[0]]
            if "output" in split:
                found = np.split(found, [2], axis=1)[place[-1]]
            np.testing.assert_allclose(found, polar(part), atol=1e-5)


def test_groups_of_a_convolution():
    kernel = normal(3, 3, 2, 8)  # [kh, kw, in / groups, out] of 4 groups
    tx = orthogonalize("svd", split={"conv": [2] * 4})
    updates, _ = tx.update({"conv": {"kernel": kernel}}, EMPTY)
    groups = kernel.reshape(18, 4, 2).transpose(1, 0, 2)
    actual = updates["conv"]["kernel"].reshape(18, 4, 2).transpose(1, 0, 2)
    np.testing.assert_allclose(actual, polar(groups), atol=1e-5)


def test_dimension_numbers_are_those_of_the_whole():
    x = normal(2, 6, 3)  # [layers, output, reduction]
    tx = split_fused(orthogonalize("svd"), {"w": (4, 2)}, matrices={"w": Numbers(2, 1)})
    updates, _ = tx.update({"w": x}, tx.init({"w": x}))
    np.testing.assert_allclose(updates["w"][:, :4], polar(x[:, :4]), atol=1e-5)
    np.testing.assert_allclose(updates["w"][:, 4:], polar(x[:, 4:]), atol=1e-5)


@pytest.mark.parametrize(
    ("split", "match"),
    [
        ({"w": (4, 1)}, r"parameter 'w' of shape \(4, 6\) does not add up: the sizes \(4, 1\)"),
        ({"w": (6, 0)}, "must be positive"),
        ({"w": {"columns": (6,)}}, "names the axis 'columns'; use 'reduction' or 'output'"),
        ({"w": {"reduction": (4, 2)}}, "reduction axis, 4"),
        ({"v": (4, 2)}, "does not match any matrix, .* the matrices are w"),
        ({"bias": (3, 2)}, "does not match any matrix"),
        ((4, 2), r"split=\(4, 2\) does not say which parameters it splits"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_split_that_does_not_fit_is_refused_at_init(split, match):
    with pytest.raises(ValueError, match=match):
        mimuon_jax.muon(0.1, split=split).init({"w": normal(4, 6), "bias": normal(5)})
