"""The optimizer's share of a decoder's training step, and a minute of training."""

import dataclasses
import functools
import math
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from benchmarks.isolated import Part, guarded
from benchmarks.memory import decoder_task
from benchmarks.profile import kernels
from benchmarks.time import compiled, medians, queued
from mimuon_jax import mimuon, muon
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, newton_schulz
from models.qwen3 import matrix_dimension_numbers, qwen3_0_6b
from train.mesh import make_mesh
from train.optimizers import Muon, make_optimizer
from train.step import jit_step, make_state
from train.task import Task

# TFLOP/s of dense bfloat16 products by JAX's name of the card, from NVIDIA's data sheets.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-80GB": 312.0,
}

# Without it 16 sequences of 1024 tokens need 143 GiB on a CPU, with it 30; no product is repeated.
REMAT = functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
)


_TRACE = 15.0  # seconds at most, for the kernels of a step


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
    chosen: Collection[str] = ("default", "mimuon, default", "standard", "optax", "fast"),
) -> Iterator[NamedTuple]:
    """Qwen3-0.6B, with fewer layers and a smaller vocabulary; float32 parameters and momenta.

    Args:
        layers: the model has 28.
        batch: sequences per step.
        length: tokens per sequence.
        rounds: measurements, of which the median is taken.
        vocabulary: number of tokens; the model has 151,936.
        dtype: of the matrix products, the model's and the orthogonalizers'.
        chosen: which optimizers, in this order; each alternates with the gradient.
    """
    task = _task(layers, vocabulary, dtype)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, vocabulary)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return task.loss(params, {}, tokens, jax.random.key(0), jnp.int32(0))[0]

    gradient, _, _ = compiled(jax.grad(loss), params, tokens)
    gradients = gradient(params, tokens)
    first = queued(functools.partial(gradient, params, tokens))
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

    def share(name: str) -> Iterator[Share]:
        state = jax.jit(found[name].init)(params)
        update, _, _ = compiled(found[name].update, gradients, state, params)
        second = queued(functools.partial(update, gradients, state, params))
        a, b = medians({"gradient": first, name: second}, rounds).values()
        yield Share(name, batch * length, a, b, b / (a + b))

    for name in chosen:
        yield from guarded(f"share: {name}", share(name))


class Trained(NamedTuple):
    """How far a training run has come."""

    data: str
    seconds: float  # since the second step, the first one after compiling
    steps: int
    loss: float  # nats per token, of the last step
    tokens_per_second: float
    tflops: float  # of the model: 6 per parameter of a product and token, and of causal attention
    ceiling: float  # share of the rate of one large bfloat16 product
    mfu: float  # share of the rate that the card's maker states; not a number for other cards
    peak: float  # GB of device memory, of the whole process; not a number on a CPU


def run(
    layers: int,
    batch: int,
    length: int,
    vocabulary: int,
    seconds: float,
    tokens: Path | None,
    ceiling: float,
    end: float = math.inf,
) -> Iterator[NamedTuple]:
    """Trains Qwen3-0.6B with Muon in bfloat16, reports six times, and lists a step's kernels.

    Args:
        layers: the model has 28.
        batch: sequences per step.
        length: tokens per sequence.
        vocabulary: number of tokens; the model has 151,936.
        seconds: how long, without compiling.
        tokens: file of little-endian uint16 tokens; None: random tokens, half of them token 0.
        ceiling: TFLOP/s of a large bfloat16 product.
        end: on the clock of `time.monotonic`, when everything should be done.
    """
    begin = time.perf_counter()
    task = _task(layers, vocabulary, jnp.bfloat16)
    optimizer, schedule = make_optimizer(Muon(), steps=10_000, matrices=task.matrices)
    state = make_state(task, optimizer, _mesh(), seed=0)
    step = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    draw = _windows(_read(tokens, vocabulary), batch, length)
    flops = 1e-12 * _flops_per_token(state.params, layers, length)
    peak = PEAKS.get(jax.devices()[0].device_kind, math.nan)
    state, metrics = step(state, next(draw))
    jax.block_until_ready(metrics)
    yield Part("first training step, with compilation", time.perf_counter() - begin, "done")
    seconds = max(min(seconds, end - time.monotonic() - _TRACE), 1.0)
    start, passed, steps, reports = time.perf_counter(), 0.0, 0, 0
    while passed < seconds:
        waited, (state, metrics) = metrics, step(state, next(draw))
        jax.block_until_ready(waited)  # one step behind, so that the device never waits
        steps, passed = steps + 1, time.perf_counter() - start
        if passed >= min((reports + 1) * seconds / 6, seconds):
            loss, reports = float(metrics["loss"]), reports + 1
            passed = time.perf_counter() - start
            rate = steps * batch * length / passed
            done = rate * flops
            memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", math.nan)
            name = tokens.name if tokens else "random"
            shares = done / ceiling, done / peak
            yield Trained(name, passed, steps, loss, rate, done, *shares, memory / 1e9)
    once = functools.partial(step, state, next(draw))
    yield from guarded("kernels of a training step", kernels("training step", once))


def _mesh() -> Mesh:
    """One device."""
    return make_mesh("data=1", devices=jax.devices()[:1])


def _task(layers: int, vocabulary: int, dtype: DTypeLike) -> Task:
    """Language modelling with a smaller Qwen3-0.6B."""
    config = dataclasses.replace(qwen3_0_6b(), num_hidden_layers=layers, vocab_size=vocabulary)
    return decoder_task(config, _mesh(), dtype=dtype, remat=REMAT)


def _flops_per_token(params: Any, layers: int, length: int) -> float:
    """6 for each parameter of a product; attention sees half of the sequence."""
    config = qwen3_0_6b()
    matrices = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    attention = length * config.num_attention_heads * config.head_dim
    return 6.0 * (matrices + layers * attention)


def _windows(stream: np.ndarray, batch: int, length: int) -> Iterator[jax.Array]:
    """Batches of random windows."""
    random = np.random.default_rng(0)
    while True:
        starts = random.integers(len(stream) - length, size=(batch, 1))
        yield jax.device_put(stream[starts + np.arange(length + 1)].astype(np.int32))


def _read(path: Path | None, vocabulary: int) -> np.ndarray:
    """The tokens of a file, or random ones."""
    if path is None:
        random = np.random.default_rng(1)
        return random.integers(vocabulary, size=1 << 20) * random.integers(2, size=1 << 20)
    stream = np.memmap(path, "<u2", "r")
    if (largest := int(stream.max())) >= vocabulary:
        raise SystemExit(f"error: {path} has token {largest}, and the vocabulary is {vocabulary}")
    return stream
