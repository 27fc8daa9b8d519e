"""Tests of the oracles on cases computed by hand."""

import numpy as np
import pytest

from tests import oracles
from tests.oracles.comparison import assert_close, assert_trees_close

PLAIN = ((0,), (1,))
SETTINGS = {"learning_rate": 0.1, "auxiliary": oracles.adamw(0.01)}


def one(*gradients):
    """A tree with one matrix, called `w`, that starts at zero."""
    steps = [{"w": np.array(g, np.float64)} for g in gradients]
    return {"w": np.zeros_like(steps[0]["w"])}, steps


# --- matrices ---


@pytest.mark.parametrize(
    ("shape", "axes", "count", "matrix_shape"),
    [
        ((4, 5), ((0,), (1,)), 1, (4, 5)),
        ((4, 5), ((1,), (0,)), 1, (5, 4)),
        ((2, 3, 4, 5), ((0, 1, 2), (3,)), 1, (24, 5)),
        ((2, 3, 4, 5), ((1,), (3,)), 8, (3, 5)),
        ((2, 3, 4, 5), ((3,), (1, 2)), 2, (5, 12)),
    ],
)
def test_arrays_are_split_into_matrices_and_assembled_again(shape, axes, count, matrix_shape):
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    matrices = oracles.as_matrices(x, axes)
    assert [m.shape for m in matrices] == [matrix_shape] * count
    assert_close(oracles.per_matrix(lambda m: m, axes, x), x)


def test_arrays_are_split_along_batch_axes_between_the_matrix_axes():
    x = np.arange(24.0).reshape(2, 3, 4)  # axis 1 is the batch
    first, second, third = oracles.as_matrices(x, ((2,), (0,)))
    assert_close(first, [[0, 12], [1, 13], [2, 14], [3, 15]])
    assert_close(second, x[:, 1, :].T)
    assert_close(third, x[:, 2, :].T)


def test_spectral_powers_by_hand():
    m = np.array([[4.0, 0, 0], [0, -9, 0]])
    assert_close(oracles.orthogonal(m), [[1, 0, 0], [0, -1, 0]])
    assert_close(oracles.spectral_power(m, 0.5), [[2, 0, 0], [0, -3, 0]])
    assert_close(oracles.spectral_power(m, 0.25), [[2**0.5, 0, 0], [0, -(3**0.5), 0]])
    assert_close(oracles.spectral_power(m, 1.0), m)
    assert_close(oracles.orthogonal(np.outer([3.0, 4.0], [0, 2.0])), [[0, 0.6], [0, 0.8]])
    assert_close(oracles.orthogonal(np.zeros((2, 3))), np.zeros((2, 3)))


def test_measures_by_hand():
    m = np.zeros((4, 3))
    m[1:] = np.diag([5.0, -2.5, 3.0])
    measures = {name: measure(m) for name, measure in oracles.MEASURES.items()}
    norm = (25 + 6.25 + 9) ** 0.5
    expected = {"gap": 0.5, "rms": norm / 3**0.5, "frobenius": norm, "spectral": 5.0}
    assert_trees_close(measures, expected)


@pytest.mark.parametrize(
    ("values", "gap"),
    [([2, 2, 1], 0), ([7, 0, 0], np.inf), ([0, 0, 0], np.inf), ([7, 4, 0], 3)],
    ids=["repeated", "rank one", "zero", "zeros are not singular values"],
)
def test_gap_counts_non_zero_singular_values_alone(values, gap):
    assert oracles.MEASURES["gap"](np.diag(np.array(values, float))) == pytest.approx(gap)


def test_gains_by_hand():
    assert {name: gain(4, 9) for name, gain in oracles.GAINS.items()} == pytest.approx(
        {"width": 1.5, "rms": 0.6, "spectral": 1.5, None: 1.0}
    )
    assert {name: gain(9, 4) for name, gain in oracles.GAINS.items()} == pytest.approx(
        {"width": 1.0, "rms": 0.6, "spectral": 2 / 3, None: 1.0}
    )


def test_a_measure_equal_to_the_threshold_opens_the_gate():
    assert oracles.gate_is_open(np.diag([3.0, 1.0]), lambda m: float(m[1, 1]), 1.0)
    assert not oracles.gate_is_open(np.diag([3.0, 1.0]), lambda m: float(m[1, 1]), 1.01)


def test_an_infinite_threshold_closes_the_gate_for_an_infinite_gap():
    rank_one = np.outer([1.0, 2.0], [3.0, 1.0])
    assert oracles.gate_is_open(rank_one, "gap", 1e300)
    assert not oracles.gate_is_open(rank_one, "gap", np.inf)


# --- gradient estimates ---


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (oracles.heavy_ball(0.5), [1, 2.5, 4.25]),
        (oracles.heavy_ball(0.5, nesterov=True), [1.5, 3.25, 5.125]),
        (oracles.ema(0.5), [0.5, 1.25, 2.125]),
        (oracles.ema(0.5, debias=True), [1, 1.25 / 0.75, 2.125 / 0.875]),
        (oracles.ema(0.5, nesterov=True), [0.75, 1.625, 2.5625]),
        (oracles.ema(0.5, from_first=True), [1, 1.5, 2.25]),
        (
            oracles.ema(0.5, debias=True, nesterov=True),
            [0.25 / 0.75 + 0.5 / 0.5, 0.625 / 0.875 + 1 / 0.75, 1.0625 / 0.9375 + 1.5 / 0.875],
        ),
    ],
)
def test_estimates_of_the_gradients_1_2_3(estimate, expected):
    history = [np.array(1.0), np.array(2.0), np.array(3.0)]
    assert [float(estimate(history[: t + 1])) for t in range(3)] == pytest.approx(expected)


def test_mvr_by_hand():
    history = [np.full((1, 1), g) for g in (1.0, 2.0)]
    previous = [None, np.full((1, 1), 1.25)]
    # beta = 0.75, gamma = 0.5: 0.75 * 1 + 0.25 * 2 + 0.375 * (2 - 1.25)
    assert_close(oracles.mvr(0.75, 0.5, history, previous, PLAIN), [[1.53125]])
    # the corrected gradient 2 + 1.5 * 0.75 = 3.125 is clipped to 2
    assert_close(oracles.mvr(0.75, 0.5, history, previous, PLAIN, clip=2.0), [[1.25]])


def test_mvr_clips_each_matrix_on_its_own_and_not_the_first_estimate():
    history = [np.full((2, 1, 1), 5.0), np.array([3.0, 0.5]).reshape(2, 1, 1)]
    axes = ((1,), (2,))
    clipped = oracles.mvr(0.5, 1.0, history, [None, history[1]], axes, clip=1.0)
    assert_close(clipped.ravel(), [2.5 + 0.5 * 1.0, 2.5 + 0.5 * 0.5])
    loose = oracles.mvr(0.5, 1.0, history, [None, history[0]], axes, clip=1e9)
    assert_close(loose, oracles.mvr(0.5, 1.0, history, [None, history[0]], axes))


# --- optimizers by hand ---


def test_muon_step_by_hand():
    params = {"w": np.array([[1.0, 0, 0], [0, 2, 0]])}
    gradient = {"w": np.array([[3.0, 0, 0], [0, -4, 0]])}
    (after,) = oracles.muon(
        params,
        [gradient],
        numbers={"w": PLAIN},
        momentum=oracles.heavy_ball(0.9),
        gain="width",
        weight_decay=0.5,
        **SETTINGS,
    )
    gain = 1.5**0.5
    assert_close(after["w"], [[0.95 - 0.1 * gain, 0, 0], [0, 1.9 + 0.1 * gain, 0]])


def test_mimuon_decides_for_each_matrix_of_a_batch():
    params, gradients = one([np.diag([3.0, 1.0]), np.diag([0.3, 0.1])])
    (after,) = oracles.mimuon(
        params,
        gradients,
        numbers={"w": ((1,), (2,))},
        threshold=1.0,
        measure="gap",
        momentum=oracles.heavy_ball(0.9),
        gain="rms",
        **SETTINGS,
    )
    assert_close(after["w"][0], -0.1 * 0.2 * 2**0.5 * np.eye(2))
    assert_close(after["w"][1], -0.1 * np.diag([0.3, 0.1]))


def test_musgd_two_steps_by_hand():
    params, gradients = {"w": np.array([[2.0]]), "b": np.array([2.0])}, []
    for g in (1.0, -4.0):
        gradients.append({"w": np.array([[g]]), "b": np.array([g])})
    first, second = oracles.musgd(
        params,
        gradients,
        numbers={"w": PLAIN, "b": None},
        learning_rate=0.1,
        muon_weight=0.5,
        sgd_weight=0.2,
        beta=0.5,
        mu=0.5,
        nesterov=False,
        gain=None,
        weight_decay=0.25,
    )
    # N_0 = 1 + 0.5; the matrix also moves by 0.05 against the sign of M_0.
    assert_trees_close(first, {"w": np.array([[1.92]]), "b": np.array([1.97])})
    # M_1 = 0.25 - 2 is negative; N_1 = 0.75 - 4 + 0.25 W_1 with each one's own W_1.
    expected = {
        "w": np.array([[1.92 + 0.05 - 0.02 * (-3.25 + 0.48)]]),
        "b": np.array([1.97 - 0.02 * (-3.25 + 0.4925)]),
    }
    assert_trees_close(second, expected)


@pytest.mark.parametrize(
    ("update_every", "expected"), [(1, [1, 2**-0.5, 3**-0.5]), (2, [1, 1, 3**-0.5])]
)
@pytest.mark.parametrize("max_dim", [2, 3], ids=["one side", "both sides"])
def test_shampoo_of_a_constant_gradient_is_its_polar_factor_over_root_t(
    update_every, expected, max_dim
):
    gradient = np.array([[3.0, 1.0, 0.5], [-1.0, 0.7, 2.0]])
    params, gradients = one(*[gradient] * 3)
    trees = oracles.shampoo(
        params,
        gradients,
        numbers={"w": PLAIN},
        damping=1e-13,
        max_dim=max_dim,
        update_every=update_every,
        **SETTINGS,
    )
    moves = -np.diff([params["w"]] + [tree["w"] for tree in trees], axis=0) / 0.1
    polar = oracles.orthogonal(gradient)
    # Without damping the R of the wide side is singular, and G has rounding in its null space.
    np.testing.assert_allclose(moves, [f * polar for f in expected], atol=1e-8)


def test_shampoo_by_hand_with_damping_decay_and_no_side_left():
    params, gradients = one([[3.0]], [[4.0]])
    params = {"w": np.array([[2.0]])}
    settings = {"numbers": {"w": PLAIN}, "damping": 3.0, "update_every": 1, **SETTINGS}
    first, second = oracles.shampoo(params, gradients, max_dim=1, weight_decay=0.5, **settings)
    assert_close(first["w"], [[1.9 - 0.1 * 3 / 6]])
    assert_close(second["w"], [[0.95 * first["w"].item() - 0.1 * 4 / 10]])
    (untouched, _) = oracles.shampoo(params, gradients, max_dim=0, **settings)
    assert_close(untouched["w"], [[1.7]])


def test_spectral_powers_between_carry_no_gain():
    params, gradients = one([[4.0, 0, 0], [0, 9.0, 0]])
    settings = {"numbers": {"w": PLAIN}, "learning_rate": 1.0, "momentum": oracles.heavy_ball(0)}
    (root,) = oracles.spectral_sgd(params, gradients, p=0.5, **settings)
    assert_close(-root["w"], [[2, 0, 0], [0, 3, 0]])
    (polar,) = oracles.spectral_sgd(params, gradients, p=0.0, **settings)
    assert_close(-polar["w"], 1.5**0.5 * np.eye(2, 3))
