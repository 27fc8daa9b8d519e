"""modded-nanogpt's decoder against a slow float64 rewrite, and its bounded logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.cross_entropy import capped, cross_entropy, logits
from models.nanogpt import NanoGPT, NanoGPTConfig, matrix_dimension_numbers, track_3
from models.sampling import decode_step, prefill

CONFIG = NanoGPTConfig(vocab_size=11, n_embd=16, n_layer=2, n_head=2, projection_scale=1.0)
TOKENS = np.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def made(config=CONFIG):
    """A model all of whose parameters are random, also those that start at 0 or 1."""
    graph, params = nnx.split(NanoGPT(config, rngs=nnx.Rngs(0)))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return nnx.merge(graph, treedef.unflatten(moved))


def oracle(model, tokens):
    """The logits, position by position, in float64."""
    params = jax.tree.map(
        lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )

    def rms(x, gain=1.0):
        return gain * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def linear(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def turned(x, position):
        """Of 8 features, pairs (0, 4) and (1, 5) turn by 1 and 1/1024 radians per position."""
        x = x.copy()
        for i, frequency in enumerate((1.0, 1 / 1024)):
            c, s = np.cos(position * frequency), np.sin(position * frequency)
            x[i], x[i + 4] = c * x[i] - s * x[i + 4], s * x[i] + c * x[i + 4]
        return x

    rows = []
    for row in tokens:
        x = rms(params["embed"]["embedding"][row], params["embed_norm"]["scale"])
        for number in range(2):
            layer = jax.tree.map(lambda p, i=number: p[i], params["layers"])
            y, attention = rms(x, layer["attention_norm"]["scale"]), layer["attention"]
            q, k, v = (linear(y, attention[name]) for name in ("query", "key", "value"))
            context = np.zeros_like(x)
            for head in (slice(0, 8), slice(8, 16)):
                queries = [turned(rms(q[t, head]), t) for t in range(len(row))]
                keys = [turned(rms(k[t, head]), t) for t in range(len(row))]
                for t in range(len(row)):
                    scores = np.exp([0.12 * queries[t] @ keys[s] for s in range(t + 1)])
                    context[t, head] = scores / scores.sum() @ v[: t + 1, head]
            x = x + linear(context, attention["output"])
            y = linear(rms(x, layer["mlp_norm"]["scale"]), layer["mlp"]["up"])
            x = x + linear(np.maximum(y, 0) ** 2, layer["mlp"]["down"])
        z = linear(rms(x, params["last_norm"]["scale"]), params["lm_head"])
        rows.append(15 * z / np.sqrt(z**2 + 225))
    return np.stack(rows)


@pytest.mark.slow
def test_the_logits_are_those_of_the_oracle():
    model = made()
    np.testing.assert_allclose(model(jnp.asarray(TOKENS)), oracle(model, TOKENS), atol=2e-4)


@pytest.mark.slow
def test_a_step_with_a_cache_gives_the_logits_of_the_whole():
    model, tokens = made(), jnp.asarray(TOKENS)
    first, cache = prefill(model, tokens[:, :4], capacity=5)
    second, _ = decode_step(model, tokens[:, 4], cache)
    whole = model(tokens)
    np.testing.assert_allclose(first, whole[:, 3], atol=2e-4)
    np.testing.assert_allclose(second, whole[:, 4], atol=2e-4)


def test_the_first_logits_are_zero_and_the_projections_too():
    model = NanoGPT(NanoGPTConfig(vocab_size=11, n_embd=16, n_layer=2, n_head=2), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for name in ("output", "down"):
        part = params["layers"]["attention" if name == "output" else "mlp"][name]
        assert not np.any(part["kernel"])
    assert not np.any(model.head)
    assert float(np.std(params["layers"]["mlp"]["up"]["kernel"])) == pytest.approx(
        (0.33 / 16) ** 0.5, rel=0.05
    )


def test_the_benchmark_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: NanoGPT(track_3(), rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    numbers = jax.tree.structure(params).flatten_up_to(matrix_dimension_numbers(params))
    sizes = [x.size for x in jax.tree.leaves(params)]
    matrices = sum(size for size, entry in zip(sizes, numbers, strict=True) if entry is not None)
    assert matrices == 84_934_656
    assert round(sum(sizes) / 1e5) == 1624


@pytest.mark.parametrize("chunk_size", [1, 5])
def test_the_loss_of_bounded_logits_and_its_gradient(chunk_size):
    random = np.random.default_rng(0)
    hidden, kernel = (
        jnp.asarray(2 * random.standard_normal(shape), jnp.float32)
        for shape in ((2, 5, 7), (7, 11))
    )
    targets = jnp.asarray(TOKENS)

    def plain(hidden, kernel):
        z = jax.nn.log_softmax(capped(logits(hidden, kernel), 3.0))
        return -jnp.take_along_axis(z, targets[..., None], -1).mean()

    def chunked(hidden, kernel):
        return cross_entropy(hidden, kernel, targets, chunk_size=chunk_size, logit_cap=3.0)

    expected, actual = (
        jax.value_and_grad(f, argnums=(0, 1))(hidden, kernel) for f in (plain, chunked)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 20}, "every head needs a multiple of 4 features"),
        ({"n_layer": 0}, "n_layer=0 is not a size"),
        ({"logit_cap": 0.0}, "logit_cap=0.0 is out of range"),
        ({"projection_scale": -1.0}, "use a finite number of 0 or more"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(fields, message):
    settings = {"vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 2} | fields
    with pytest.raises(ValueError, match=message):
        NanoGPTConfig(**settings)
