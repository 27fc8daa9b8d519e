"""The optimizer's share of a training step of a decoder."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import optax
from flax import nnx

from benchmarks.time import medians
from mimuon_jax import muon
from mimuon_jax.coefficients import JORDAN
from mimuon_jax.newton_schulz import fast_newton_schulz
from models.qwen3 import Qwen3, matrix_dimension_numbers, qwen3_0_6b


class Share(NamedTuple):
    """One optimizer after one forward and backward pass."""

    implementation: str
    tokens: int
    gradient: float  # median seconds, forward and backward
    update: float  # median seconds, all parameters
    share: float  # of the update in both


def shares(layers: int = 2, batch: int = 2, length: int = 512, rounds: int = 5) -> Iterator[Share]:
    """Qwen3-0.6B with fewer layers and a vocabulary of 4096, float32 parameters and products."""
    config = dataclasses.replace(qwen3_0_6b(), num_hidden_layers=layers, vocab_size=4096)
    graph, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)), nnx.Param)
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, config.vocab_size)

    def loss(params: nnx.State) -> jax.Array:
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    gradient = jax.jit(jax.grad(loss))
    gradients = gradient(params)
    found = {
        "optax": optax.contrib.muon(0.02, muon_weight_dimension_numbers=matrix_dimension_numbers),
        "standard": muon(0.02, orthogonalizer="jordan", matrices=matrix_dimension_numbers),
        "fast": muon(
            0.02,
            orthogonalizer=functools.partial(fast_newton_schulz, schedule=JORDAN),
            matrices=matrix_dimension_numbers,
        ),
    }
    calls = {"gradient": functools.partial(gradient, params)}
    for name, tx in found.items():
        calls[name] = functools.partial(jax.jit(tx.update), gradients, tx.init(params), params)
    wait = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    seconds = medians(wait, rounds)
    for name in found:
        both = seconds["gradient"] + seconds[name]
        yield Share(name, batch * length, seconds["gradient"], seconds[name], seconds[name] / both)
