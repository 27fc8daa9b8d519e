"""The largest attention logits: from the model through the training step to MuonClip."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimuon_jax import QKSpec, clip_qk
from models import gpt2
from models.gpt2 import GPT2Config
from models.qwen3 import Qwen3, tiny
from train.errors import BadInput
from train.experiments.runs import build
from train.optimizers import Muon, MuonClip
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion

MODEL = GPT2Config(vocab_size=256, n_positions=512, n_embd=16, n_layer=2, n_head=2)
TOKENS = jax.random.randint(jax.random.key(0), (2, 9), 0, 256)


def sown(model: Any) -> jax.Array:
    """The largest logits of `TOKENS`."""
    _, state = nnx.capture(model.hidden_states, nnx.Intermediate)(TOKENS, sow_max_logits=True)
    return state["max_logits"][0]


def larger(model: gpt2.GPT2) -> gpt2.GPT2:
    """The model with embeddings and weights that make logits large."""
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: 8 * x, params))


@pytest.mark.slow
def test_a_decoder_hands_out_the_largest_logit_of_every_head():
    model = larger(gpt2.GPT2(MODEL, rngs=nnx.Rngs(0)))
    largest = sown(model)
    assert (largest.shape, largest.dtype) == ((2, 2), jnp.float32)
    first = jax.tree.map(lambda x: x[0], model.layers)
    x = first.attention_norm(model.embeddings(TOKENS, jnp.arange(9)[None]))
    query, key, _ = jnp.split(first.attention.query_key_value(x), 3, axis=-1)
    heads = [part.reshape(2, 9, 2, 8) for part in (query, key)]
    logits = jnp.einsum("btnh,bsnh->bnts", *heads) / 8**0.5
    visible = jnp.tril(jnp.ones((1, 1, 9, 9), bool))
    expected = jnp.where(visible, logits, -jnp.inf).max((0, 2, 3))
    np.testing.assert_allclose(largest[0], expected, rtol=1e-4)
    assert sown(Qwen3(tiny(), rngs=nnx.Rngs(0))).shape == (3, 4)


@pytest.mark.slow
def test_clipped_logits_of_gpt2_reach_the_limit():
    model = larger(gpt2.GPT2(MODEL, rngs=nnx.Rngs(0)))
    parts = gpt2.query_key_parts(MODEL)
    specs = {pattern: [QKSpec(**part) for part in found] for pattern, found in parts.items()}
    largest = sown(model)
    tau = float(largest[0].min()) * 1.01  # of the first layer, whose input stays the same
    clipped = clip_qk(nnx.state(model, nnx.Param), {"layers": largest}, specs, tau=tau)
    nnx.update(model, clipped)
    np.testing.assert_allclose(sown(model)[0], np.minimum(largest[0], tau), rtol=1e-4)


@pytest.fixture
def clipping(small: Callable[..., LanguageModel], tmp_path: Path) -> Callable[..., Any]:
    """Runs one step of a GPT-2, and returns the parameters after it and the metrics."""

    def step(optimizer: Any = None, **fields: Any) -> tuple[Any, dict[str, Any]]:
        optimizer = optimizer or MuonClip(learning_rate=1e-3, tau=1e-4, warmup_steps=0)
        config = small(tmp_path, model=MODEL, optimizer=optimizer, **fields)
        parts = build(dataclasses.replace(config, batch_size=16))
        state, metrics = parts.step(parts.state, parts.batch(0))
        return state.params, metrics

    return step


@pytest.mark.slow
def test_training_clips_by_the_largest_logit_of_the_whole_batch(clipping: Callable[..., Any]):
    params, metrics = clipping()
    assert float(metrics["max_logit"]) > 1e-4
    for fields in ({"mesh": "data=8"}, {"micro_batches": 4}):
        actual, others = clipping(**fields)
        assert float(others["max_logit"]) == pytest.approx(float(metrics["max_logit"]), rel=1e-4)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), actual, params)
    unclipped, _ = clipping(MuonClip(learning_rate=1e-3, tau=jnp.inf, warmup_steps=0))
    one, other = (
        np.asarray(p["layers"]["attention"]["query_key_value"]["kernel"])
        for p in (params, unclipped)
    )
    assert np.abs(one[..., :32]).mean() < 0.9 * np.abs(other[..., :32]).mean()
    np.testing.assert_allclose(one[..., 32:], other[..., 32:], atol=1e-4)  # values


@pytest.mark.slow
def test_other_optimizers_do_not_compute_them(clipping: Callable[..., Any]):
    assert "max_logit" not in clipping(Muon())[1]


def test_a_model_that_normalizes_queries_and_keys_is_refused(
    small: Callable[..., LanguageModel], tmp_path: Path
):
    with pytest.raises(BadInput, match="optimizer=MuonClip limits attention logits, which this"):
        build(small(tmp_path, optimizer=MuonClip()))
