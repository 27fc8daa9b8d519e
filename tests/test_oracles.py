"""The oracles themselves: hand-computed cases, identities, and optax as an independent witness."""

import chex
import numpy as np
import optax
import optax.contrib
import pytest

from tests import oracles
from tests.oracles.comparison import assert_agreement, nested, run

PLAIN = ((0,), (1,))
SETTINGS = {"learning_rate": 0.1, "auxiliary": oracles.adamw(0.01)}


@pytest.fixture(scope="module")
def mixed():
    return oracles.fixed_mixed_tree()


def one(*gradients):
    """A tree with one matrix, called `w`, that starts at zero."""
    steps = [{"w": np.array(g, np.float64)} for g in gradients]
    return {"w": np.zeros_like(steps[0]["w"])}, steps


def matrices_only(mixed, trees):
    """The leaves of each tree that are matrices."""
    return [{path: tree[path] for path, axes in mixed.numbers.items() if axes} for tree in trees]


def assert_close(actual, expected):
    """Float64 arrays that may differ by the order of a few additions."""
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def assert_trees_close(actual, expected):
    """Float64 trees that may differ by the order of a few additions."""
    chex.assert_trees_all_close(actual, expected, rtol=1e-11, atol=1e-12)


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
def test_arrays_are_cut_into_matrices_and_put_together_again(shape, axes, count, matrix_shape):
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    matrices = oracles.as_matrices(x, axes)
    assert [m.shape for m in matrices] == [matrix_shape] * count
    assert_close(oracles.per_matrix(lambda m: m, axes, x), x)


def test_batch_axes_between_the_matrix_axes_are_cut_at_the_right_places():
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
    ids=["repeated", "rank one", "zero", "zeros are no singular values"],
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
    # The wide side's R is singular but for the damping, and G has rounding in its null space.
    np.testing.assert_allclose(moves, [f * polar for f in expected], atol=1e-8)


def test_shampoo_by_hand_with_damping_decay_and_no_side_left():
    params, gradients = one([[3.0]], [[4.0]])
    params = {"w": np.array([[2.0]])}
    settings = {"numbers": {"w": PLAIN}, "damping": 11.0, "update_every": 1, **SETTINGS}
    first, second = oracles.shampoo(params, gradients, max_dim=1, weight_decay=0.5, **settings)
    assert_close(first["w"], [[1.9 - 0.1 * 3 / 20**0.5]])
    assert_close(second["w"], [[0.95 * first["w"].item() - 0.1 * 4 / 6]])
    (untouched, _) = oracles.shampoo(params, gradients, max_dim=0, **settings)
    assert_close(untouched["w"], [[1.7]])


# --- identities on the fixed tree ---


@pytest.mark.parametrize("gain", list(oracles.GAINS))
def test_mimuon_at_threshold_0_is_muon(mixed, gain):
    settings = {"momentum": oracles.heavy_ball(0.9), "gain": gain, "weight_decay": 0.1, **SETTINGS}
    chex.assert_trees_all_equal(
        oracles.mimuon(*mixed[:2], numbers=mixed.numbers, threshold=0, measure="gap", **settings),
        oracles.muon(*mixed[:2], numbers=mixed.numbers, **settings),
    )


@pytest.mark.parametrize("measure", list(oracles.MEASURES))
def test_mimuon_at_threshold_infinity_is_momentum_sgd(mixed, measure):
    momentum = oracles.heavy_ball(0.9, nesterov=True)
    settings = {"momentum": momentum, "weight_decay": 0.1, "learning_rate": 0.1}
    shut = oracles.mimuon(
        *mixed[:2],
        numbers=mixed.numbers,
        threshold=np.inf,
        measure=measure,
        gain="width",
        auxiliary=oracles.adamw(0.01),
        **settings,
    )
    plain = oracles.sgdm(*mixed[:2], **settings)
    chex.assert_trees_all_equal(matrices_only(mixed, shut), matrices_only(mixed, plain))


def test_a_measure_equal_to_the_threshold_opens_the_gate():
    assert oracles.gate_is_open(np.diag([3.0, 1.0]), lambda m: float(m[1, 1]), 1.0)
    assert not oracles.gate_is_open(np.diag([3.0, 1.0]), lambda m: float(m[1, 1]), 1.01)


def test_an_infinite_threshold_shuts_an_infinite_gap():
    rank_one = np.outer([1.0, 2.0], [3.0, 1.0])
    assert oracles.gate_is_open(rank_one, "gap", 1e300)
    assert not oracles.gate_is_open(rank_one, "gap", np.inf)


@pytest.mark.parametrize("clip", [None, 1e9])
def test_mvr_with_gamma_0_is_muon_on_the_average_from_the_first_gradient(mixed, clip):
    settings = {"numbers": mixed.numbers, "gain": "spectral", "weight_decay": 0.1, **SETTINGS}
    muon = oracles.muon(*mixed[:2], momentum=oracles.ema(0.9, from_first=True), **settings)
    settings |= {"beta": 0.9, "gamma": 0.0, "clip": clip}
    assert_trees_close(oracles.muon_mvr1(*mixed[:2], **settings), muon)
    mvr2 = oracles.muon_mvr2(mixed.params, lambda t, _: mixed.gradients[t], steps=10, **settings)
    assert_trees_close(mvr2, muon)


def test_mvr2_with_gamma_1_is_storm(mixed):
    gradient_at = oracles.curved(mixed.gradients)
    trees = oracles.muon_mvr2(
        mixed.params,
        gradient_at,
        steps=4,
        numbers=mixed.numbers,
        beta=0.8,
        gamma=1.0,
        gain=None,
        **SETTINGS,
    )
    path = "dense/wide/kernel"
    visited = [mixed.params, *trees]
    m = gradient_at(0, visited[0])[path]
    for t in range(4):
        if t:
            old = gradient_at(t, visited[t - 1])[path]
            m = gradient_at(t, visited[t])[path] + 0.8 * (m - old)
        expected = visited[t][path] - 0.1 * oracles.orthogonal(m)
        assert_close(visited[t + 1][path], expected)


def test_mvr1_corrects_by_the_gradient_of_the_step_before(mixed):
    settings = {"numbers": mixed.numbers, "gain": None, **SETTINGS}
    trees = oracles.muon_mvr1(*mixed[:2], beta=0.8, gamma=0.5, **settings)
    path = "dense/tall/kernel"
    visited = [mixed.params, *trees]
    g = [tree[path] for tree in mixed.gradients]
    m = g[0]
    for t in range(10):
        if t:
            m = 0.8 * m + 0.2 * g[t] + 0.4 * (g[t] - g[t - 1])
        assert_close(visited[t + 1][path], visited[t][path] - 0.1 * oracles.orthogonal(m))


MUSGD = {"learning_rate": 0.1, "beta": 0.9, "mu": 0.8, "nesterov": True, "gain": "width"}


def test_musgd_with_weights_1_and_0_is_muon(mixed):
    musgd = oracles.musgd(
        *mixed[:2], numbers=mixed.numbers, muon_weight=1, sgd_weight=0, weight_decay=0.1, **MUSGD
    )
    muon = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.ema(0.9, nesterov=True),
        gain="width",
        auxiliary=oracles.sgd(0.0),
    )
    assert_trees_close(musgd, muon)


@pytest.mark.parametrize("nesterov", [False, True])
def test_musgd_with_weights_0_and_1_is_sgd_with_coupled_decay(mixed, nesterov):
    mixed = mixed.part("dense/tall/kernel", "norm/scale")
    musgd = oracles.musgd(
        *mixed[:2],
        numbers=mixed.numbers,
        muon_weight=0,
        sgd_weight=1,
        sgd_nesterov=nesterov,
        weight_decay=0.1,
        **MUSGD,
    )
    sgd = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.8, nesterov=nesterov))
    assert_agreement(run(sgd, *mixed[:2]), musgd)


def test_spectral_sgd_ends_at_muon_and_at_momentum_sgd(mixed):
    momentum = oracles.heavy_ball(0.9)
    settings = {"learning_rate": 0.1, "momentum": momentum, "weight_decay": 0.1}
    plain = oracles.sgdm(*mixed[:2], **settings)
    settings["numbers"] = mixed.numbers
    assert_trees_close(oracles.spectral_sgd(*mixed[:2], p=1.0, **settings), plain)
    settings["auxiliary"] = oracles.adamw(0.01)
    assert_trees_close(
        oracles.spectral_sgd(*mixed[:2], p=0.0, **settings),
        oracles.muon(*mixed[:2], gain="width", **settings),
    )


def test_spectral_powers_between_carry_no_gain():
    params, gradients = one([[4.0, 0, 0], [0, 9.0, 0]])
    settings = {"numbers": {"w": PLAIN}, "learning_rate": 1.0, "momentum": oracles.heavy_ball(0)}
    (root,) = oracles.spectral_sgd(params, gradients, p=0.5, **settings)
    assert_close(-root["w"], [[2, 0, 0], [0, 3, 0]])
    (polar,) = oracles.spectral_sgd(params, gradients, p=0.0, **settings)
    assert_close(-polar["w"], 1.5**0.5 * np.eye(2, 3))


# --- optax as witness ---


def test_spectral_adam_with_p_1_is_adamw(mixed):
    mixed = mixed.part("dense/tall/kernel", "norm/scale")
    adam = oracles.spectral_adam(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        p=1.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
    )
    assert_agreement(run(optax.adamw(0.1, b2=0.95, weight_decay=0.1), *mixed[:2]), adam)


@pytest.mark.parametrize(
    ("rule", "witness"),
    [
        (oracles.adamw(0.1), optax.adamw(0.1, weight_decay=0.0)),
        (oracles.adamw(0.1, b1=0.8, weight_decay=0.1), optax.adamw(0.1, b1=0.8, weight_decay=0.1)),
        (oracles.sgd(0.1), optax.sgd(0.1)),
        (oracles.sgd(0.1, oracles.heavy_ball(0.9)), optax.sgd(0.1, 0.9)),
        (oracles.lion(0.1, weight_decay=0.1), optax.lion(0.1, weight_decay=0.1)),
    ],
    ids=["adamw", "adamw with decay", "sgd", "heavy ball", "lion"],
)
def test_auxiliary_rules_are_those_of_optax(mixed, rule, witness):
    mixed = mixed.part("norm/scale", "head/kernel")
    trees = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.heavy_ball(0.9),
        gain=None,
        auxiliary=rule,
    )
    assert_agreement(run(witness, *mixed[:2]), trees)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("gain", "consistent_rms"), [("width", None), ("rms", 0.2)])
def test_muon_is_optax_muon_when_both_iterate(mixed, nesterov, gain, consistent_rms):
    mixed = mixed.part("stem/conv/kernel", "layers/attention/value/kernel", "norm/scale")
    trees = oracles.muon(
        *mixed[:2],
        numbers=mixed.numbers,
        learning_rate=0.1,
        momentum=oracles.ema(0.95, debias=True, nesterov=nesterov),
        gain=gain,
        weight_decay=0.1,
        orth=lambda m: oracles.newton_schulz(m, eps=1e-8),
        auxiliary=oracles.adamw(0.01),
    )
    numbers = {
        path: axes and optax.contrib.MuonDimensionNumbers(*axes)
        for path, axes in mixed.numbers.items()
    }
    witness = optax.contrib.muon(
        0.1,
        beta=0.95,
        nesterov=nesterov,
        weight_decay=0.1,
        consistent_rms=consistent_rms,
        adam_learning_rate=0.01,
        muon_weight_dimension_numbers=nested(numbers),
    )
    # The auxiliary side is left out: optax hands `nesterov` and the decay on to its Adam.
    optax_trees = run(witness, *mixed[:2])
    assert_agreement(matrices_only(mixed, optax_trees), matrices_only(mixed, trees))


# --- the fixed tree ---


def test_every_estimate_of_the_fixed_tree_is_well_conditioned(mixed):
    estimates = [
        oracles.heavy_ball(0.9),
        oracles.heavy_ball(0.95, nesterov=True),
        oracles.ema(0.9),
        oracles.ema(0.95, debias=True, nesterov=True),
        oracles.adam(),
        oracles.adam(0.9, 0.95),
    ]
    for path, axes in mixed.numbers.items():
        if axes is None:
            continue
        for step in range(10):
            history = [tree[path] for tree in mixed.gradients[: step + 1]]
            for estimate in estimates:
                for m in oracles.as_matrices(estimate(history), axes):
                    s = np.linalg.svd(m, compute_uv=False)
                    assert s[-1] > 0.2 * s[0], f"{path}, step {step}: singular values {s}"


def test_the_fixed_tree_is_fixed(mixed):
    chex.assert_trees_all_equal(oracles.fixed_mixed_tree(), mixed)
    other = oracles.fixed_mixed_tree(2)
    assert not np.array_equal(other.params["norm/scale"], mixed.params["norm/scale"])
    assert [len(mixed.gradients), len(mixed.params)] == [10, len(mixed.numbers)]
