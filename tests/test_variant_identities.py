"""Where variants of Muon equal Muon or each other, and what they keep."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import mimuon_jax as mj
from mimuon_jax import muon, normalize_units, orthogonalize, threshold_gate
from tests.contract import assert_close
from tests.test_identities import GRADIENTS, PARAMS, RATE, SETTINGS, matrices, walk

pytestmark = pytest.mark.standard_promotion

NUMBERS = {"matrices": SETTINGS["matrices"]}
SVD = {"orthogonalizer": "svd", **NUMBERS}


def assert_near(actual, expected, rtol=1e-5):
    """Equal up to the rounding of two ways to compute the same."""
    assert_close(actual, expected, rtol=rtol)


def test_normuon_at_beta2_1_is_muon():
    settings = SETTINGS | {"weight_decay": 0.1, "gain": "rms"}
    expected = walk(muon(RATE, **settings), jit=True)
    assert_near(walk(mj.normuon(RATE, beta2=1.0, **settings), jit=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("per", ["output", "longer"])
def test_normuon_of_exact_factors_with_few_outputs_is_muon(per):
    """All outputs of a tall or square matrix have norm 1: its statistic is constant."""
    params = {"tall": PARAMS["wide"].T, "square": PARAMS["wide"][:, :4]}
    params = params if per == "output" else {"square": params["square"]}
    plain = muon(RATE, orthogonalizer="svd")
    normuon = mj.normuon(RATE, per=per, orthogonalizer="svd")
    states = normuon.init(params), plain.init(params)
    for gradient in GRADIENTS:
        gradient = {"tall": gradient["wide"].T, "square": gradient["wide"][:, :4]}
        gradient = {name: gradient[name] for name in params}
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


@pytest.mark.slow
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.99])
def test_the_first_update_of_adamuon_is_signs_and_every_one_has_its_rms(beta2):
    tx = mj.adamuon(1.0, beta2=beta2, **SVD)
    state = tx.init(PARAMS)
    for step, gradient in enumerate(GRADIENTS):
        updates, state = tx.update(gradient, state, PARAMS)
        for name in ("wide", "scanned"):
            u = np.asarray(updates[name])
            np.testing.assert_allclose(np.sqrt(np.mean(u**2, axis=(-2, -1))), 0.2, rtol=1e-5)
            if step == 0:
                orths = mj.polar(jnp.sign(gradient[name]))
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


def test_cautious_decay():
    w = jnp.asarray([1.0, -1.0, 2.0, 3.0])
    u = jnp.asarray([0.5, -0.5, 0.0, -0.5])
    tx = mj.add_cautious_decay(0.1)
    actual, _ = tx.update(u, tx.init(w), w)
    np.testing.assert_allclose(actual, [0.6, -0.6, 0.2, -0.5], rtol=1e-6)
    none = mj.add_cautious_decay(0.0)
    assert_close(none.update(u, none.init(w), w)[0], u)
    plain = optax.add_decayed_weights(0.1)  # where all entries move towards zero
    assert_close(tx.update(w, tx.init(w), w)[0], plain.update(w, plain.init(w), w)[0])
    params = {"a": w, "b": w}
    masked = mj.add_cautious_decay(0.1, mask={"a": True, "b": False})
    updates, _ = masked.update({"a": u, "b": u}, masked.init(params), params)
    assert_close(updates, {"a": actual, "b": u})


def norms(tree, names=("wide", "scanned")):
    return [np.linalg.norm(np.asarray(tree[name]), axis=(-2, -1)) for name in names]


@pytest.mark.slow
def test_hyperball_keeps_every_norm_and_does_not_see_the_size_of_an_update():
    def optimizer(size):
        pieces = (
            orthogonalize("jordan"),
            optax.scale(size),
            mj.match_param_norm(),
            optax.scale(-RATE),
            mj.retract(),
        )
        return mj.partition(optax.chain(*pieces), optax.set_to_zero(), **NUMBERS)

    small, large = (walk(optimizer(size), jit=True) for size in (1e-3, 64.0))
    assert_near(small, large)
    for before, after in zip(norms(PARAMS), norms(small[-1]), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_a_tangential_step_on_a_hyperball_turns_by_arctan_of_the_rate():
    w = jnp.asarray([[3.0, 0.0], [0.0, 4.0]])
    u = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
    tx = optax.chain(mj.match_param_norm(), optax.scale(-0.3), mj.retract())
    updates, _ = tx.update({"w": u}, tx.init({"w": w}), {"w": w})
    after = jnp.asarray(w + np.asarray(updates["w"]))
    cosine = float((after * w).sum() / (jnp.linalg.norm(after) * jnp.linalg.norm(w)))
    assert np.arccos(cosine) == pytest.approx(np.arctan(0.3), rel=1e-5)


def test_the_spectral_sphere_keeps_the_spectral_norm():
    tx = optax.chain(
        orthogonalize("svd"),
        mj.match_param_norm("spectral"),
        optax.scale(-0.1),
        mj.retract("spectral"),
    )
    params = {"w": jnp.diag(jnp.asarray([4.0, 2.0, 1.0]))}
    updates, _ = tx.update({"w": PARAMS["wide"][:3, :3]}, tx.init(params), params)
    after = np.asarray(params["w"]) + np.asarray(updates["w"])
    assert np.linalg.norm(after, 2) == pytest.approx(4.0, rel=1e-4)
    assert np.abs(np.asarray(updates["w"])).max() > 0.1


def test_a_matrix_of_zeros_has_no_sphere():
    params = {"layers": jnp.stack([jnp.ones((2, 2)), jnp.zeros((2, 2))])}
    tx = mj.muonh(0.1, matrices={"layers": NUMBERS["matrices"]["scanned"]})
    with pytest.raises(ValueError, match="parameter 'layers' has a matrix of norm 0"):
        tx.init(params)


def test_a_floor_of_0_changes_nothing_and_floors_never_shorten():
    for per in ("matrix", "output"):
        none, some = (mj.floor_relative(floor, per=per, **NUMBERS) for floor in (0.0, 0.8))
        (same, _), (longer, _) = (
            tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS) for tx in (none, some)
        )
        assert_close(same, GRADIENTS[0])
        axes = (-2, -1) if per == "matrix" else -2
        for name in ("wide", "scanned"):
            u, w, v = (np.linalg.norm(t[name], axis=axes) for t in (GRADIENTS[0], PARAMS, longer))
            np.testing.assert_allclose(v, np.maximum(u, 0.8 * w), rtol=1e-5)


@pytest.mark.slow
def test_a_brake_of_1_changes_nothing_and_one_of_0_with_a_pin_is_a_sphere():
    free = mj.radial_brake(1.0, 1.0, **NUMBERS)
    assert_near(free.update(GRADIENTS[0], free.init(PARAMS), PARAMS)[0], GRADIENTS[0])
    pieces = (mj.radial_brake(0.0, 0.0), optax.scale(-0.2), mj.pin_radius())
    tx = mj.partition(optax.chain(*pieces), optax.set_to_zero(), **NUMBERS)
    for before, after in zip(norms(PARAMS), norms(walk(tx, jit=True)[-1]), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.slow
def test_hyperballs_are_of_single_matrices_not_of_layers_or_experts():
    random = np.random.default_rng(0)
    params, gradient = (
        {"w": jnp.asarray(random.normal(size=(2, 3, 4, 5)) * scale, jnp.float32)}
        for scale in (np.arange(1, 7).reshape(2, 3, 1, 1), 1)
    )
    tx = mj.muonh(0.3, orthogonalizer="jordan", matrices={"w": MuonDimensionNumbers(2, 3)})
    updates, _ = tx.update(gradient, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    (before,), (after,) = norms(params, "w"), norms(after, "w")
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert np.ptp(before) > 1
    (moved,) = norms(updates, "w")
    np.testing.assert_allclose(moved / before, 0.3, rtol=0.4)  # each by its own radius


def test_a_clip_of_a_small_limit_is_muon_times_the_limit():
    grads = {name: GRADIENTS[0][name] for name in ("wide", "wider")}
    plain, clip = orthogonalize("svd"), mj.clip_spectrum(0.01, method="svd")
    (expected, _), (actual, _) = (tx.update(grads, tx.init(grads)) for tx in (plain, clip))
    for name in grads:
        np.testing.assert_allclose(100 * np.asarray(actual[name]), expected[name], atol=1e-4)


@pytest.mark.slow
def test_mvr1_at_gamma_1_minus_beta_is_nesterov_of_an_average():
    one, other = mj.mvr1(0.9, gamma=0.1), mj.ema(0.9, nesterov=True, start="gradient")
    states = one.init(PARAMS), other.init(PARAMS)
    for gradient in GRADIENTS:
        actual, first = one.update(gradient, states[0])
        expected, second = other.update(gradient, states[1])
        states = first, second
        assert_near(actual, expected)


def test_contra_at_strength_0_and_a_clip_of_a_large_limit():
    grads = {name: GRADIENTS[0][name] for name in ("wide", "wider")}
    plain, contra = orthogonalize("svd"), mj.contra(0.0, orthogonalizer="svd")
    assert_near(
        contra.update(grads, contra.init(grads))[0], plain.update(grads, plain.init(grads))[0]
    )
    clip = mj.clip_spectrum(20.0)
    assert_close(clip.update(grads, clip.init(grads))[0], grads, rtol=1e-4)


def test_the_dual_norm_makes_updates_homogeneous_and_keeps_rank_1():
    tx = mj.scale_by_dual_norm(orthogonalizer="jordan")
    w = GRADIENTS[0]["wide"]
    one, four = (tx.update({"w": x}, optax.EmptyState())[0]["w"] for x in (w, 4 * w))
    assert_near(four, 4 * jnp.asarray(one))
    exact = mj.scale_by_dual_norm(orthogonalizer="svd")
    outer = {"w": jnp.outer(PARAMS["bias"], GRADIENTS[0]["bias"])}
    assert_near(exact.update(outer, optax.EmptyState())[0], outer)


@pytest.mark.slow
def test_namo_without_memory_is_muon_and_does_not_see_the_size_of_gradients():
    settings = {"weight_decay": 0.1, **SETTINGS}
    expected = walk(muon(RATE, momentum=0.0, **settings), jit=True)
    assert_near(walk(mj.namo(RATE, beta2=0.0, momentum=0.0, **settings), jit=True), expected)
    tx = mj.namo(1.0, eps=0.0, orthogonalizer="jordan", **NUMBERS)
    states = [tx.init(PARAMS)] * 2
    for gradient in GRADIENTS[:2]:
        one, first = tx.update(gradient, states[0], PARAMS)
        many, second = tx.update({k: 16 * x for k, x in gradient.items()}, states[1], PARAMS)
        states = [first, second]
        for name in ("wide", "scanned"):
            np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=1e-7)


def test_gradients_that_cancel_out_give_namo_short_steps():
    tx = mj.scale_by_namo(mj.ema(0.5), orthogonalize("svd", **NUMBERS), 0.5, **NUMBERS)
    state, lengths = tx.init(PARAMS), []
    for sign in (1.0, -1.0):
        gradient = {k: sign * x for k, x in GRADIENTS[0].items()}
        updates, state = tx.update(gradient, state)
        lengths.append(np.linalg.norm(np.asarray(updates["wide"])))
    # |B| is 1/2 and 1/4, sqrt(v) the roots of 1/2 and 3/4, in units of |G|; rank 4.
    np.testing.assert_allclose(lengths, [2 * 0.5 / 0.5**0.5, 2 * 0.25 / 0.75**0.5], rtol=1e-5)


PIECES_OF_PARAMS = [
    mj.add_cautious_decay(0.1),
    mj.match_param_norm(),
    mj.floor_relative(0.1),
    mj.radial_brake(),
    mj.pin_radius(),
]


@pytest.mark.parametrize("tx", PIECES_OF_PARAMS)
def test_what_needs_the_parameters_says_so(tx):
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, p"):
        tx.update({"w": jnp.ones((2, 2))}, optax.EmptyState())


@pytest.mark.slow
def test_dion2_of_all_slices_is_muon_without_look_ahead():
    settings = SETTINGS | {"weight_decay": 0.1}
    plain = muon(RATE, nesterov=False, gain="spectral", momentum=0.9, **settings)
    actual = walk(mj.dion2(RATE, fraction=1.0, momentum=0.9, **settings), jit=True)
    assert_near(actual, walk(plain, jit=True))


def test_dion2_moves_the_longest_slices_and_remembers_the_others():
    b = jnp.asarray(np.diag([1.0, 4.0, 2.0, 3.0])[:, :3] + np.eye(4, 3, -1) * 0.5, jnp.float32)
    tx = mj.select_slices(0.5, 0.25, orthogonalizer="svd")
    updates, state = tx.update({"w": b}, tx.init({"w": b}))
    moved = np.any(np.asarray(updates["w"]) != 0, axis=0)
    np.testing.assert_array_equal(moved, [False, True, True])  # columns 4.5 and 2.5 of 1.5
    np.testing.assert_allclose(np.asarray(updates["w"])[:, 1:], mj.polar(b[:, 1:]), atol=1e-5)
    np.testing.assert_allclose(state.mu["w"], np.asarray(b) * [1.0, 0.25, 0.25])


def test_unconstrained_scion_of_radius_1_is_muon_with_the_spectral_gain():
    settings = SETTINGS | {"weight_decay": 0.0}
    plain = muon(RATE, momentum=mj.ema(0.9), nesterov=False, gain="spectral", **settings)
    actual = walk(mj.scion(RATE, radius=1.0, **settings), jit=True)
    assert_near(matrices(actual), matrices(walk(plain, jit=True)))


def test_constrained_scion_is_muon_with_its_gain_times_the_radius_and_full_decay():
    gain = lambda m, n: 3.0 * (n / m) ** 0.5  # noqa: E731
    settings = {"nesterov": False, "gain": gain, "weight_decay": 1.0, "momentum": 0.9}
    actual = walk(mj.scion(RATE, radius=3.0, **SETTINGS), jit=True)
    assert_near(matrices(actual), matrices(walk(muon(RATE, **settings, **SETTINGS), jit=True)))


def test_parameters_of_scion_stay_in_their_balls():
    tx = mj.scion(0.5, radius=2.0, auxiliary_radius=3.0, orthogonalizer="svd")
    params: dict = {"wide": 0.1 * PARAMS["wide"], "bias": 0.1 * PARAMS["bias"]}
    state = tx.init(params)
    for gradient in GRADIENTS * 2:
        updates, state = tx.update({k: gradient[k] for k in params}, state, params)
        params = {k: params[k] + np.asarray(updates[k]) for k in params}
        bound = 2.0 * (7 / 4) ** 0.5
        assert np.linalg.norm(np.asarray(params["wide"]), 2) <= bound * (1 + 1e-5)
        assert np.sqrt(np.mean(np.asarray(params["bias"]) ** 2)) <= 3.0 * (1 + 1e-5)


def test_every_norm_of_scion():
    x = np.asarray(GRADIENTS[0]["wide"], np.float64)
    grads = {name: jnp.asarray(x, jnp.float32) for name in ("a", "b", "c", "embed", "lm_head")}
    grads["scale"] = jnp.float32(-3.0)
    tx = mj.lmo({"^a$": "row", "^b$": "sign"}, orthogonalizer="svd")
    updates, _ = tx.update(grads, tx.init(grads))
    expected = {
        "a": x / np.linalg.norm(x, axis=0) / 2,
        "b": np.sign(x) / 4,
        "c": (7 / 4) ** 0.5 * np.asarray(mj.polar(jnp.asarray(x, jnp.float32))),
        "embed": x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)),
        "lm_head": np.sign(x) / 4,
        "scale": -1.0,
    }
    for name, y in expected.items():
        np.testing.assert_allclose(updates[name], y, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_norms_that_do_not_fit():
    with pytest.raises(ValueError, match="is unknown; use 'spectral', 'rms', 'row', 'sign'"):
        mj.lmo({"a": "column"})
    for norms, message in (
        ({"bias": "spectral"}, "does not fit parameter 'bias'"),
        ({"bias": "row"}, "does not fit parameter 'bias'"),
        ({"nothing": "row"}, "does not match any parameter; they are bias, w"),
    ):
        with pytest.raises(ValueError, match=message):
            mj.lmo(norms).init({"w": jnp.ones((2, 2)), "bias": jnp.ones(2)})
