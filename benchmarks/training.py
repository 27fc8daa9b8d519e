"""The optimizer's share of a decoder's training step, and a minute of training."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.memory import decoder_task
from benchmarks.time import medians, products
from mimuon_jax import mimuon, muon
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, newton_schulz
from models.cross_entropy import cross_entropy
from models.qwen3 import Qwen3, matrix_dimension_numbers, qwen3_0_6b
from train.mesh import make_mesh
from train.optimizers import Muon, make_optimizer
from train.step import jit_step, make_state

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
        "default": ours(),
        "mimuon, default": gated(),
    }
    calls = {"gradient": functools.partial(gradient, params)}
    for name, tx in found.items():
        calls[name] = functools.partial(jax.jit(tx.update), gradients, tx.init(params), params)
    wait = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    seconds = medians(wait, rounds)
    for name in found:
        both = seconds["gradient"] + seconds[name]
        yield Share(name, batch * length, seconds["gradient"], seconds[name], seconds[name] / both)


class Trained(NamedTuple):
    """How far a training run has come."""

    data: str
    seconds: float  # since the second step, the first one after compiling
    steps: int
    loss: float  # nats per token, of the last step
    tokens_per_second: float
    tflops: float  # of the model: 6 per parameter of a product and token, and of causal attention
    mfu: float  # share of the rate of one large bfloat16 product
    peak: float  # GB of device memory, of the whole process; not a number on a CPU


def run(
    layers: int, batch: int, length: int, vocabulary: int, seconds: float, tokens: Path | None
) -> Iterator[Trained]:
    """Trains Qwen3-0.6B with Muon in bfloat16, and reports six times.

    Args:
        layers: the model has 28.
        batch: sequences per step.
        length: tokens per sequence.
        vocabulary: number of tokens; the model has 151,936.
        seconds: how long, without compiling.
        tokens: file of little-endian uint16 tokens; None: random tokens, half of them token 0.
    """
    config = dataclasses.replace(qwen3_0_6b(), num_hidden_layers=layers, vocab_size=vocabulary)
    mesh = make_mesh("data=1", devices=jax.devices()[:1])
    task = decoder_task(config, mesh, dtype=jnp.bfloat16, remat=REMAT)
    optimizer, schedule = make_optimizer(Muon(), steps=10_000, matrices=task.matrices)
    state = make_state(task, optimizer, mesh, seed=0)
    step = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    random = np.random.default_rng(0)
    stream = _read(tokens, vocabulary)

    def windows() -> jax.Array:
        starts = random.integers(len(stream) - length, size=(batch, 1))
        return jax.device_put(stream[starts + np.arange(length + 1)].astype(np.int32))

    matrices = sum(x.size for x in jax.tree.leaves(state.params) if x.ndim > 1)
    per_layer = length * config.num_attention_heads * config.head_dim
    flops = 6.0 * (matrices + layers * per_layer)  # a token attends to half of the sequence
    ceiling = next(c.tflops for c in products() if c.product == "bfloat16")
    state, metrics = step(state, windows())
    jax.block_until_ready(metrics)
    start, passed, steps, reports = time.perf_counter(), 0.0, 0, 0
    while passed < seconds:
        waited, (state, metrics) = metrics, step(state, windows())
        jax.block_until_ready(waited)  # one step behind, so that the device never waits
        steps, passed = steps + 1, time.perf_counter() - start
        if passed >= min((reports + 1) * seconds / 6, seconds):
            loss, reports = float(metrics["loss"]), reports + 1
            passed = time.perf_counter() - start
            rate = steps * batch * length / passed
            tflops = 1e-12 * rate * flops
            memory = jax.devices()[0].memory_stats() or {}
            peak = memory.get("peak_bytes_in_use", math.nan) / 1e9
            name = tokens.name if tokens else "random"
            yield Trained(name, passed, steps, loss, rate, tflops, tflops / ceiling, peak)


def _read(path: Path | None, vocabulary: int) -> np.ndarray:
    """The tokens of a file, or random ones."""
    if path is None:
        random = np.random.default_rng(1)
        return random.integers(vocabulary, size=1 << 20) * random.integers(2, size=1 << 20)
    stream = np.memmap(path, "<u2", "r")
    if (largest := int(stream.max())) >= vocabulary:
        raise SystemExit(f"error: {path} has token {largest}, and the vocabulary is {vocabulary}")
    return stream
