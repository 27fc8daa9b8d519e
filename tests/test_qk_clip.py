"""QK-Clip: what it does to the logits of attention, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mimuon_jax import QKSpec, clip_qk, muon, muonclip, qk_clip
from models.max_logits import max_logits
from tests.test_sharding import make_mesh

pytestmark = pytest.mark.standard_promotion

BATCH, TIME, WIDTH, HEADS, FEATURES = 2, 6, 12, 4, 8


def attention(groups, seed=0):
    """Parameters of queries and keys with biases, their specs, and an input."""
    random = np.random.default_rng(seed)
    sizes = {"query": HEADS * FEATURES, "key": HEADS // groups * FEATURES}
    params = {
        name: {
            "kernel": jnp.asarray(random.standard_normal((WIDTH, size)), jnp.float32),
            "bias": jnp.asarray(random.standard_normal(size), jnp.float32),
        }
        for name, size in sizes.items()
    }
    specs = {
        f"{name}/": QKSpec("layer", role, group_size=groups)
        for name, role in (("query", "q"), ("key", "k"))
    }
    return params, specs, jnp.asarray(random.standard_normal((BATCH, TIME, WIDTH)), jnp.float32)


def queries_and_keys(params, x):
    return [
        (x @ params[name]["kernel"] + params[name]["bias"][None, None]).reshape(
            BATCH, TIME, -1, FEATURES
        )
        for name in ("query", "key")
    ]


def logits(params, x):
    """All logits `[B, N, T, S]`, however invisible."""
    query, key = queries_and_keys(params, x)
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    return jnp.einsum("btnh,bsnh->bnts", query, key) / FEATURES**0.5


def largest(params, x):
    visible = jnp.tril(jnp.ones((1, 1, TIME, TIME), bool))
    return jnp.where(visible, logits(params, x), -jnp.inf).max((0, 2, 3))


@pytest.mark.parametrize("chunk", [4, *(pytest.param(c, marks=pytest.mark.slow) for c in (1, 128))])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_largest_logits_in_chunks(groups, chunk):
    params, _, x = attention(groups)
    query, key = queries_and_keys(params, x)
    expected = largest(params, x)
    np.testing.assert_allclose(max_logits(query, key, chunk=chunk), expected, rtol=1e-5)
    segments = jnp.asarray([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 2]])
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    seen = jnp.tril(jnp.ones((1, 1, TIME, TIME), bool)) & mask
    expected = jnp.where(seen, logits(params, x), -jnp.inf).max((0, 2, 3))
    np.testing.assert_allclose(max_logits(query, key, mask=mask, chunk=chunk), expected, rtol=1e-5)


def test_no_gradient_passes_through_the_largest_logits():
    params, _, x = attention(1)
    gradient = jax.grad(lambda params: max_logits(*queries_and_keys(params, x)).sum())(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("alpha", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("groups", [1, 2])
def test_logits_of_a_clipped_head_become_g_times_the_old_ones(groups, alpha):
    params, specs, x = attention(groups)
    before = largest(params, x)
    tau = float(np.sort(before.reshape(-1, groups).max(1))[0] + 0.5)  # one group stays
    clipped = clip_qk(params, {"layer": before}, specs, tau=tau, alpha=alpha)
    per_group = np.asarray(before).reshape(-1, groups).max(1).repeat(groups)
    g = np.minimum(1, tau / per_group)
    assert 1 <= np.sum(g == 1) < HEADS
    expected = g[:, None, None] * np.asarray(logits(params, x))
    np.testing.assert_allclose(logits(clipped, x), expected, rtol=2e-5, atol=1e-5)
    assert np.asarray(largest(clipped, x)).max() <= tau * (1 + 1e-5)


def test_the_transformation_is_the_function_after_the_step():
    params, specs, x = attention(2)
    maxima = {"layer": largest(params, x)}
    updates = jax.tree.map(lambda w: 0.1 * jnp.cos(3 * w), params)
    tx = qk_clip(specs, tau=5.0)
    actual, _ = tx.update(updates, tx.init(params), params, max_logits=maxima)
    actual = optax.apply_updates(params, actual)
    expected = clip_qk(optax.apply_updates(params, updates), maxima, specs, tau=5.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected
    )


def test_tau_inf_changes_nothing():
    params, specs, x = attention(1)
    maxima = {"layer": largest(params, x)}
    settings = {"gain": "rms", "nesterov": False, "orthogonalizer": "jordan"}
    clip, plain = muonclip(0.1, specs=specs, tau=jnp.inf, **settings), muon(0.1, **settings)
    gradient = jax.tree.map(jnp.sin, params)
    actual, _ = clip.update(gradient, clip.init(params), params, max_logits=maxima)
    expected, _ = plain.update(gradient, plain.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    jax.tree.map(np.testing.assert_array_equal, clip_qk(params, maxima, specs, tau=jnp.inf), params)


@pytest.mark.parametrize("value", [-50.0, 0.0, -jnp.inf, jnp.inf, jnp.nan])
def test_a_largest_logit_that_is_not_a_positive_number_does_not_clip(value):
    params, specs, _ = attention(1)
    maxima = {"layer": jnp.asarray([value] * 3 + [400.0])}
    clipped = clip_qk(params, maxima, specs)
    expected = np.asarray(params["query"]["bias"]).reshape(HEADS, -1) * [[1], [1], [1], [0.5]]
    np.testing.assert_allclose(clipped["query"]["bias"], expected.reshape(-1), rtol=1e-6)


def test_stacked_layers_fused_kernels_and_heads_on_an_axis_of_their_own():
    g = jnp.asarray([[400.0, 1.0], [1.0, 1600.0]])  # 2 layers of 2 heads: 1/2 and 1/4 by the root
    fused, apart = jnp.ones((2, 5, 12)), jnp.ones((2, 5, 2, 3))
    specs = {
        "fused": [QKSpec("b", "q", span=(0, 4)), QKSpec("b", "k", span=(4, 8))],
        "apart": QKSpec("b", "k", axis=2),
    }
    clipped = clip_qk({"fused": fused, "apart": apart}, {"b": g}, specs)
    np.testing.assert_allclose(clipped["fused"][0, 3], [0.5] * 2 + [1] * 2 + [0.5] * 2 + [1] * 6)
    np.testing.assert_allclose(
        clipped["fused"][1, 3], [1] * 2 + [0.25] * 2 + [1] * 2 + [0.25] * 2 + [1] * 4
    )
    np.testing.assert_allclose(clipped["apart"][0, 3], [[0.5] * 3, [1] * 3])


def test_latent_attention_scales_rotary_queries_alone():
    """Of each head 3 features are not rotary, 2 are; keys share theirs, and have values besides."""
    query, key = jnp.ones((1, 2 * 5)), jnp.ones((1, 2, 4))
    specs = {
        "query": [QKSpec("b", "q", features=(0, 3)), QKSpec("b", "q_rope", features=(3, 5))],
        "key": QKSpec("b", "k", axis=1, features=(0, 3)),
        "shared": QKSpec("b", "skip"),
    }
    params = {"query": query, "key": key, "shared": jnp.ones((1, 2))}
    clipped = clip_qk(params, {"b": jnp.asarray([400.0, 1.0])}, specs)
    np.testing.assert_allclose(clipped["query"][0], [0.5] * 3 + [0.25] * 2 + [1] * 5)
    np.testing.assert_allclose(clipped["key"][0], [[0.5] * 3 + [1], [1] * 4])
    np.testing.assert_array_equal(clipped["shared"], params["shared"])


@pytest.mark.parametrize("devices", [2, 8])
def test_the_maximum_is_that_of_the_whole_batch(devices):
    random = np.random.default_rng(1)
    query, key = (jnp.asarray(random.standard_normal((8, 6, 2, 4)), jnp.float32) for _ in "qk")
    mesh = make_mesh(devices, AxisType.Auto)
    sharded = (jax.device_put(x, NamedSharding(mesh, P("x"))) for x in (query, key))
    np.testing.assert_allclose(jax.jit(max_logits)(*sharded), max_logits(query, key), rtol=1e-6)


MESSAGES = {
    "missing": (None, r"qk_clip needs max_logits, the largest attention logit of every head"),
    "another": ({"other": jnp.ones(4)}, "nothing for the block 'layer'; it has 'other'"),
    "batch": ({"layer": jnp.ones((2, 4))}, "take the maximum over the batch"),
    "heads": ({"layer": jnp.ones(3)}, "must be in it, and a multiple of the 3 heads"),
    "scalar": ({"layer": jnp.ones(())}, "must be \\[..., heads\\]"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_logits_that_do_not_fit(case):
    given, message = MESSAGES[case]
    params, specs, _ = attention(1)
    tx = qk_clip(specs)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, max_logits=given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({}, "does not say where queries and keys are"),
        ({"query": QKSpec("layer", "query")}, "with the role 'q', 'k', 'q_rope', 'skip'"),
        ({"query": "q"}, "use QKSpec"),
        ({"query": QKSpec("layer", "q", group_size=0)}, "group_size must be at least 1"),
        ({"queries": QKSpec("layer", "q")}, "'queries' does not match any parameter"),
    ],
)
def test_specs_that_do_not_fit(specs, message):
    with pytest.raises(ValueError, match=message):
        qk_clip(specs).init({"query": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (QKSpec("b", "q", axis=2), "does not fit parameter 'w'"),
        (QKSpec("b", "q", span=(0, 7)), "entries 0 to 7 of axis 1"),
        (QKSpec("b", "q", features=(0, 5)), "a head has 3 features"),
    ],
)
def test_parts_that_do_not_fit(spec, message):
    with pytest.raises(ValueError, match=message):
        clip_qk({"w": jnp.ones((2, 6))}, {"b": jnp.ones(2)}, {"w": spec})
