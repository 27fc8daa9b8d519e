"""The gate relative to a number that scales with the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding
from optax.contrib import MuonDimensionNumbers as Numbers

from mimuon_jax import heavy_ball, mimuon, muon, orthogonalize, sgdm, threshold_gate
from mimuon_jax.diagnostics import describe_gate, gates

pytestmark = pytest.mark.standard_promotion

STEPS = 8
THRESHOLDS = {"peak": 0.7, "average": 0.95, "noise": 1.2}  # each opens some gates, not all
MATRICES = {"layers": {"kernel": Numbers(1, 2)}}
every_reference = pytest.mark.parametrize("relative_to", THRESHOLDS)


def gradients(scale=1.0):
    """Noisy gradients of two shapes, one of them a stack of two; their sizes rise and fall."""
    random = np.random.default_rng(0)
    found = []
    for step in range(STEPS):
        size = scale * (1.5 + np.sin(step)) * np.array([1.0, 30.0])
        stack = size[:, None, None] * random.standard_normal((2, 3, 5))
        found.append(
            {
                "layers": {"kernel": jnp.asarray(stack, jnp.float32)},
                "down": jnp.asarray(size[0] * random.standard_normal((6, 4)), jnp.float32),
                "bias": jnp.ones(3),
            }
        )
    return found


def decisions(tx, trees):
    """Which gates were open at every step, and what was compared: ``[steps, 3]`` each."""
    state, rows = tx.init(trees[0]), []
    update = jax.jit(tx.update)
    for tree in trees:
        _, state = update(tree, state, tree)
        rows.append([np.hstack([x["layers/kernel"], x["down"]]) for x in gates(state)[0][:2]])
    opened, compared = np.moveaxis(np.asarray(rows, np.float64), 1, 0)
    return opened.astype(bool), compared


def gated(relative_to, measure="rms"):
    gate = threshold_gate(
        orthogonalize(matrices=MATRICES),
        threshold=THRESHOLDS.get(relative_to, 0.95),
        measure=measure,
        relative_to=relative_to,
        matrices=MATRICES,
    )
    return optax.chain(heavy_ball(0.5), gate)


def oracle(relative_to, measure=lambda x: np.linalg.norm(x) / np.sqrt(min(x.shape))):
    """The ratios in float64, matrix by matrix."""
    ratios = []
    for pick in (
        lambda t: t["layers"]["kernel"][0],
        lambda t: t["layers"]["kernel"][1],
        lambda t: t["down"],
    ):
        momentum, total, weight, peak, row = 0.0, 0.0, 0.0, 0.0, []
        for tree in gradients():
            previous, momentum = momentum, 0.5 * momentum + np.asarray(pick(tree), np.float64)
            value = measure(momentum)
            seen = measure(momentum - previous) if relative_to == "noise" else value
            peak = max(peak, seen)
            total, weight = 0.99 * total + 0.01 * seen, 0.99 * weight + 0.01
            row.append(value / (peak if relative_to == "peak" else total / weight))
        ratios.append(row)
    return np.transpose(ratios)


@every_reference
def test_decisions_are_those_of_the_oracle(relative_to):
    opened, compared = decisions(gated(relative_to), gradients())
    expected = oracle(relative_to)
    np.testing.assert_allclose(compared, expected, rtol=1e-5)
    np.testing.assert_array_equal(opened, expected >= THRESHOLDS[relative_to])
    assert 0 < opened[1:].mean() < 1
    np.testing.assert_allclose(compared[0], 1, rtol=1e-6)


@every_reference
def test_decisions_do_not_depend_on_the_scale_of_the_gradients(relative_to):
    opened, _ = decisions(gated(relative_to), gradients())
    for scale in (1e-6, 1e6):
        np.testing.assert_array_equal(decisions(gated(relative_to), gradients(scale))[0], opened)


GATES = {
    "Muon": (0.0, None),
    "absolute": (5e-3, None),
    "peak": (0.1, "peak"),
    "average": (0.5, "average"),
    "noise": (1.0, "noise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GATES)
def test_training_next_to_clipping_and_a_scaled_loss(name):
    """The table in docs/gate.md."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(256, 32), (32, 64), (64, 16), (32, 64), (64, 16)]
    x, *layers = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    y = jnp.tanh(x @ (0.2 * layers[0])) @ (0.2 * layers[1])
    start = {"up": 0.1 * layers[2], "down": 0.1 * layers[3]}
    matrices = {"up": Numbers(0, 1), "down": Numbers(0, 1)}
    rate = optax.cosine_decay_schedule(0.02, 300)

    def loss(params):
        return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)

    def trained(clip, scale):
        threshold, relative_to = GATES[name]
        optimizer = optax.chain(
            optax.clip_by_global_norm(clip),
            mimuon(rate, threshold=threshold, relative_to=relative_to, matrices=matrices),
        )

        def step(carry, _):
            params, state = carry
            gradients = jax.grad(lambda p: scale * loss(p))(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        start_of_all = start, optimizer.init(start)
        (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))(start_of_all)
        return float(loss(params))

    losses = [trained(np.inf, 1.0), trained(1e-3, 1.0), trained(np.inf, 1e-4)]
    plain, *disturbed = losses
    assert plain < 0.1 < 1.0 < loss(start)
    if name == "absolute":
        assert min(disturbed) > 1.0  # it stays where it started
    else:
        assert max(disturbed) < 0.1


def test_an_absolute_threshold_means_something_else_next_to_clipping():
    for relative_to, expected in ((None, 0.0), ("average", 1.0)):
        tx = optax.chain(
            optax.clip_by_global_norm(1e-3),
            threshold_gate(
                orthogonalize(matrices=MATRICES),
                threshold=5e-3 if relative_to is None else 0.5,
                relative_to=relative_to,
                matrices=MATRICES,
            ),
        )
        opened, _ = decisions(tx, gradients())
        assert opened[0].mean() == expected, relative_to


@every_reference
@pytest.mark.parametrize(("threshold", "nesterov"), [(0.0, False), (0.0, True), (np.inf, False)])
def test_the_extremes_are_muon_and_momentum_sgd(relative_to, threshold, nesterov):
    options = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "matrices": MATRICES}
    tx = mimuon(0.1, threshold=threshold, relative_to=relative_to, **options)
    if threshold == 0:
        expected = muon(0.1, **options)
    else:
        expected = mimuon(0.1, threshold=np.inf, **options)
    states = [tx.init(gradients()[0]), expected.init(gradients()[0])]
    for tree in gradients()[:3]:
        ours, states[0] = tx.update(tree, states[0], tree)
        theirs, states[1] = expected.update(tree, states[1], tree)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_momentum_sgd_is_that_of_sgdm():
    tx = mimuon(0.1, threshold=np.inf, relative_to="peak", momentum=0.9, auxiliary=optax.sgd(0.1))
    tree = {"kernel": gradients()[0]["down"]}
    plain = sgdm(0.1, momentum=0.9)
    ours, _ = tx.update(tree, tx.init(tree), tree)
    theirs, _ = plain.update(tree, plain.init(tree), tree)
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-6)


@pytest.mark.parametrize("relative_to", ["average", "noise"])
@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_decisions_do_not_depend_on_the_mesh(relative_to, kind):
    expected, ratios = decisions(gated(relative_to), gradients())
    mesh = jax.make_mesh((4, 2), ("fsdp", "data"), axis_types=(kind, kind))
    specs = {"layers": {"kernel": P("data")}, "down": P("data", "fsdp"), "bias": P()}
    placed = [
        jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)
        for tree in gradients()
    ]
    with jax.set_mesh(mesh):
        opened, found = decisions(gated(relative_to), placed)
    np.testing.assert_array_equal(opened, expected)
    np.testing.assert_allclose(found, ratios, rtol=1e-5)


@every_reference
def test_a_measure_that_is_not_finite_does_not_stay(relative_to):
    gate = threshold_gate(optax.scale(2.0), threshold=0.5, measure="gap", relative_to=relative_to)
    state = gate.init({"kernel": jnp.zeros((2, 2))})
    whole = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
    rows = []
    for tree in (
        jax.tree.map(jnp.zeros_like, whole),
        whole,
        whole,
        {"kernel": jnp.full((2, 2), jnp.nan)},
    ):
        _, state = gate.update(tree, state)
        rows.append((bool(state.gate.open["kernel"]), float(state.gate.measured["kernel"])))
    # The gap of a zero matrix is inf, of which the ratio to an unknown reference is taken for inf.
    assert [is_open for is_open, _ in rows] == [True, True, True, False]
    assert rows[1][1] == 1.0


def test_a_zero_matrix_has_the_ratio_1():
    for relative_to in THRESHOLDS:
        gate = threshold_gate(optax.identity(), threshold=1.0, relative_to=relative_to)
        tree = {"kernel": jnp.zeros((2, 2))}
        _, state = gate.update(tree, gate.init(tree))
        assert float(state.gate.measured["kernel"]) == 1


def test_a_reference_of_the_user():
    opened, compared = decisions(gated(optax.ema(0.99)), gradients())
    expected, ratios = decisions(gated("average"), gradients())
    np.testing.assert_allclose(compared, ratios, rtol=1e-4)
    np.testing.assert_array_equal(opened, expected)


def test_an_absolute_gate_has_the_state_of_earlier_checkpoints():
    state = threshold_gate(optax.identity(), threshold=1.0).init({"kernel": jnp.ones((2, 2))})
    assert type(state)._fields == ("open", "measured", "rate", "inner", "otherwise")


def test_the_line_about_the_gate():
    tree = gradients()[0]
    tx = mimuon(0.1, threshold=2.0, relative_to="peak", matrices=MATRICES)
    line = describe_gate(tx.update(tree, tx.init(tree), tree)[1])
    assert (
        line
        == "the gate was open for 0 of 3 matrices, which measured 1 (down) to 1 (layers/kernel)"
    )


@pytest.mark.usefixtures("unchecked")
def test_what_is_not_a_reference():
    with pytest.raises(ValueError, match="relative_to='mean' is unknown; use 'peak', 'average'"):
        mimuon(0.1, relative_to="mean")
    lost = optax.stateless(lambda updates, params: ())
    tree = {"kernel": jnp.ones((2, 3))}
    tx = mimuon(0.1, relative_to=lost)
    with pytest.raises(ValueError, match="must return one reference per measure"):
        tx.update(tree, tx.init(tree), tree)
