"""The optimizer's share of a decoder's training step."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.time import medians
from mimuon_jax import mimuon, muon
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, newton_schulz
from models.cross_entropy import cross_entropy
from models.qwen3 import Qwen3, matrix_dimension_numbers, qwen3_0_6b

# Without it 16 sequences of 1024 tokens need 143 GiB on a CPU, with it 30; no product is repeated.
REMAT = functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
)


class Share(NamedTuple):
    """The time of one optimizer next to that of one forward and backward pass."""

    implementation: str
    tokens: int
    gradient: float  # median seconds, forward and backward
    update: float  # median seconds, all parameters
    share: float  # of the update in the sum of both


def shares(
    layers: int = 2,
    batch: int = 2,
    length: int = 512,
    rounds: int = 5,
    vocabulary: int = 4096,
    dtype: DTypeLike = jnp.float32,
) -> Iterator[Share]:
    """Qwen3-0.6B, with fewer layers and a smaller vocabulary; float32 parameters and momenta.

    Args:
        layers: the model has 28.
        batch: sequences per step.
        length: tokens per sequence.
        rounds: measurements, of which the median is taken.
        vocabulary: number of tokens; the model has 151,936.
        dtype: of the matrix products, the model's and the orthogonalizers'.
    """
    config = dataclasses.replace(qwen3_0_6b(), num_hidden_layers=layers, vocab_size=vocabulary)
    graph, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype), nnx.Param)
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, vocabulary)

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params)
        hidden = model.hidden_states(tokens[:, :-1], remat=REMAT)
        return cross_entropy(hidden, model.head, tokens[:, 1:])

    gradient = jax.jit(jax.grad(loss))
    gradients = gradient(params)
    standard = functools.partial(newton_schulz, schedule=JORDAN, dtype=dtype)
    fast = functools.partial(fast_newton_schulz, schedule=JORDAN, dtype=dtype)
    ours = functools.partial(muon, 0.02, matrices=matrix_dimension_numbers)
    gated = functools.partial(mimuon, 0.02, threshold=0.005, matrices=matrix_dimension_numbers)
    found = {
        "optax": optax.contrib.muon(0.02, muon_weight_dimension_numbers=matrix_dimension_numbers),
        "standard": ours(orthogonalizer=standard),
        "fast": ours(orthogonalizer=fast),
        "mimuon, standard": gated(orthogonalizer=standard),
        "mimuon, fast": gated(orthogonalizer=fast),
    }
    calls = {"gradient": functools.partial(gradient, params)}
    for name, tx in found.items():
        calls[name] = functools.partial(jax.jit(tx.update), gradients, tx.init(params), params)
    wait = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    seconds = medians(wait, rounds)
    for name in found:
        both = seconds["gradient"] + seconds[name]
        yield Share(name, batch * length, seconds["gradient"], seconds[name], seconds[name] / both)
