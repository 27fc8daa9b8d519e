"""Incremental decoding against the full forward pass, and sampling against its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.qwen3 import decode_step, prefill, sample
from tests.models.qwen3_cases import NAMES, build, forward, golden, relative_error

# Two float32 programs over the same numbers; observed: 3e-7 to 3.3e-6.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def known():
    """Model and tokens of one case."""
    case = golden("untied_ratio2")
    return build(case["config"], case["params"]), case["tokens"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "tied_ratio4")) for n in NAMES]
)
def test_decoding_token_by_token_equals_one_forward_pass(name):
    case = golden(name)
    model = build(case["config"], case["params"])
    tokens, config = case["tokens"], case["config"]
    logits, cache = prefill(model, tokens[:, :5], capacity=13)
    found = [logits]
    for position in range(5, 12):
        logits, cache = decode_step(model, tokens[:, position], cache)
        found.append(logits)
    assert int(cache.length) == 12
    heads = config.num_key_value_heads, config.head_dim
    assert cache.keys.shape == cache.values.shape == (config.num_hidden_layers, 2, 13, *heads)
    assert relative_error(jnp.stack(found, 1), forward(model, tokens)[:, 4:]) < ROUNDING


def test_the_cache_has_the_compute_dtype():
    case = golden("untied_ratio2")
    half = build(case["config"], case["params"], dtype="bfloat16")
    logits, cache = jax.eval_shape(lambda: prefill(half, case["tokens"], capacity=13))
    logits, cache = jax.eval_shape(lambda c: decode_step(half, jnp.asarray([1, 2]), c), cache)
    assert (cache.keys.dtype, cache.values.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert logits.dtype == jnp.float32


@pytest.mark.slow
def test_temperature_zero_and_top_one_take_the_most_likely_token(known):
    model, tokens = known
    rows = tokens
    for position in range(4, 12):
        # What comes later is not seen, so rows of full length will do.
        rows = rows.at[:, position].set(forward(model, rows)[:, position - 1].argmax(-1))
    greedy = sample(model, tokens[:, :4], 8, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(greedy, rows[:, 4:])
    top = sample(model, tokens[:, :4], 8, jax.random.key(1), temperature=3.0, top_k=1)
    np.testing.assert_array_equal(top, rows[:, 4:])


@pytest.mark.parametrize("top_k", [None, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_samples_follow_the_softmax_of_the_scaled_logits(known, temperature, top_k):
    model, tokens = known
    count = 8000
    prompt = jnp.repeat(tokens[:1, :4], count, axis=0)
    drawn = sample(model, prompt, 1, jax.random.key(7), temperature=temperature, top_k=top_k)
    logits = np.asarray(forward(model, tokens)[0, 3], np.float64) / temperature
    if top_k is not None:
        logits[np.argsort(logits)[:-top_k]] = -np.inf
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    frequency = np.bincount(np.asarray(drawn)[:, 0], minlength=len(expected)) / count
    assert np.all(frequency[expected == 0] == 0)
    # Five standard deviations of a binomial frequency, and one count for the rarest tokens.
    bound = 5 * np.sqrt(expected * (1 - expected) / count) + 1 / count
    assert np.all(np.abs(frequency - expected) <= bound)


@pytest.mark.slow
def test_later_tokens_are_drawn_from_what_came_before(known):
    model, tokens = known
    drawn = sample(model, tokens[:, :4], 8, jax.random.key(3), temperature=1.0)
    again = sample(model, tokens[:, :4], 8, jax.random.key(3), temperature=1.0)
    other = sample(model, tokens[:, :4], 8, jax.random.key(4), temperature=1.0)
    np.testing.assert_array_equal(drawn, again)
    assert drawn.shape == (2, 8)
    assert np.any(np.asarray(drawn) != np.asarray(other))
    # Almost nothing but noise: fresh for every step and every row.
    hot = np.asarray(sample(model, tokens[:, :4], 8, jax.random.key(6), temperature=1e6))
    assert np.unique(hot).size > 8
    # Almost no noise: every token must be the most likely one after those that were drawn.
    cold = sample(model, tokens[:, :4], 8, jax.random.key(5), temperature=1e-6)
    rows = jnp.concatenate([tokens[:, :4], cold], 1)
    np.testing.assert_array_equal(forward(model, rows)[:, 3:-1].argmax(-1), cold)


def test_a_full_cache_is_refused(known):
    model, tokens = known
    with pytest.raises(ValueError, match=r"capacity=11 cannot hold a prompt of 12 tokens; .* 12"):
        prefill(model, tokens, capacity=11)
    _, cache = prefill(model, tokens, capacity=13)
    _, cache = decode_step(model, tokens[:, 0], cache)
    with pytest.raises(ValueError, match=r"cache is full: it holds 13 of 13 tokens; .* larger"):
        decode_step(model, tokens[:, 0], cache)


def test_tokens_that_do_not_fit_the_cache_or_the_vocabulary_are_refused(known):
    model, tokens = known
    _, cache = prefill(model, tokens, capacity=13)
    with pytest.raises(ValueError, match=r"shape \[3\], the cache holds 2 sequences"):
        decode_step(model, jnp.asarray([1, 2, 3]), cache)
    with pytest.raises(ValueError, match="range from 1 to 37, but vocab_size=37"):
        decode_step(model, jnp.asarray([1, 37]), cache)
    with pytest.raises(ValueError, match="range from -1 to"):
        prefill(model, tokens.at[0, 0].set(-1), capacity=13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0 adds nothing; use 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1 is out of range; use 0"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"temperature": float("inf")}, "temperature=inf is out of range"),
        ({"top_k": 0}, r"top_k=0 is out of range; use 1 to 37 or None"),
        ({"top_k": 38}, r"top_k=38 is out of range; use 1 to 37 or None"),
        ({"prompt": jnp.asarray([[99]])}, "range from 99 to 99"),
        ({"prompt": jnp.zeros((1, 0), jnp.int32)}, "at least one row and one column"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(known, change, message):
    model, tokens = known
    arguments = {"prompt": tokens, "steps": 2, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        sample(model, **arguments)
