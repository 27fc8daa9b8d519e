"""Training on two sets that differ in one sample: many such pairs at once.

Axes: L lanes (pairs of every size), T steps, B batch, R records, N samples of the largest set,
F features, M held-out samples.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from mimuon_jax import gap
from mimuon_jax.diagnostics import gate_rate, has_gate
from mimuon_jax.transforms.momentum import HeavyBallState
from train.data.labelled import digits

Params = dict[str, Float[Array, "inputs outputs"]]
Make = Callable[[Any], optax.GradientTransformation]  # learning rate -> optimizer


class Pool(NamedTuple):
    """Samples that the sets are drawn from, and the held-out ones."""

    features: Float[Array, "pool F"]
    labels: Int32[Array, "pool"]
    held_features: Float[Array, "M F"]
    held_labels: Int32[Array, "M"]


class Lane(NamedTuple):
    """One pair of sets, as rows of the pool."""

    size: Int32[Array, ""]
    rows: Int32[Array, "N"]  # the first `size` are the set
    other: Int32[Array, ""]  # row that replaces rows[0] in the twin's set
    key: PRNGKeyArray  # for initial weights and indices


class Trajectory(NamedTuple):
    """What is recorded along a run; `[L, R]` once vmapped over lanes."""

    distance: Float[Array, "R"]  # ||W - W'||_F over all weights
    travelled: Float[Array, "R"]  # ||W - W_0||_F
    train_loss: Float[Array, "R"]  # mean over the lane's set, nats
    held_loss: Float[Array, "R"]  # mean over the held-out samples, nats
    loss_change: Float[Array, "R"]  # mean over the held-out samples of |loss - twin's loss|
    kappa: Float[Array, "R"]  # smallest gap so far between singular values of any matrix's momentum
    gate: Float[Array, "R"]  # share of open gates since the last record; NaN without a gate


def digits_pool() -> Pool:
    """Standardized digits: the training split to draw from, the held-out split to measure on."""
    training, held_out = digits()
    pixels = training.images.reshape(len(training.labels), -1).astype(np.float32)
    others = held_out.images.reshape(len(held_out.labels), -1).astype(np.float32)
    shift, scale = pixels.mean(), pixels.std()
    arrays = ((pixels - shift) / scale, training.labels, (others - shift) / scale, held_out.labels)
    return Pool(*map(jnp.asarray, arrays))


def draw_lane(key: PRNGKeyArray, size: Int32[Array, ""], *, pool: int, largest: int) -> Lane:
    """Draws a set, and the sample that its twin has in place of the first one."""
    rows_key, key = jax.random.split(key)
    order = jax.random.permutation(rows_key, pool)
    return Lane(size, order[:largest], order[largest], key)


def initial_weights(key: PRNGKeyArray, sizes: tuple[int, ...]) -> Params:
    """Weights of a network without biases, with variance 2 / inputs."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"w{i}": jax.random.normal(keys[i], shape) * (2 / shape[0]) ** 0.5
        for i, shape in enumerate(itertools.pairwise(sizes))
    }


def losses(params: Params, features: Float[Array, "B F"], labels: Int32[Array, "B"]) -> Array:
    """Cross entropy of every sample, in nats."""
    x = features
    for name in sorted(params)[:-1]:
        x = jax.nn.relu(x @ params[name])
    logits = x @ params[max(params)]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@functools.partial(jax.jit, static_argnames=("make", "widths", "records", "every", "batch"))
def trajectories(
    lanes: Lane,
    pool: Pool,
    learning_rate: Float[Array, ""],
    *,
    make: Make,
    widths: tuple[int, ...],
    records: int,
    every: int,
    batch: int,
) -> Trajectory:
    """Trains every lane and its twin with the same initial weights and the same indices.

    Args:
        lanes: the pairs, `[L]`.
        pool: their samples.
        learning_rate: constant over the run.
        make: builds the optimizer.
        widths: sizes of the hidden layers.
        records: number of records.
        every: steps between two records.
        batch: samples per step, drawn with replacement.

    Returns:
        The records, `[L, R]`.
    """
    optimizer = make(learning_rate)
    classes = 10
    sizes = (pool.features.shape[1], *widths, classes)
    gradient = jax.grad(lambda params, rows: losses(params, *_samples(pool, rows)).mean())

    def step(carry: Any, indices: Array, lane: Lane) -> tuple[Any, Float[Array, ""]]:
        ours = lane.rows[indices]
        theirs = jnp.where(indices == 0, lane.other, ours)
        new = []
        for (params, state), rows in zip(carry, (ours, theirs), strict=True):
            updates, state = optimizer.update(gradient(params, rows), state, params)
            new.append((optax.apply_updates(params, updates), state))
        rate = gate_rate(new[0][1]) if has_gate(new[0][1]) else jnp.full((), jnp.nan)
        return tuple(new), rate

    def train(lane: Lane) -> Trajectory:
        weights_key, index_key = jax.random.split(lane.key)
        start = initial_weights(weights_key, sizes)
        first = (start, optimizer.init(start))

        def record(carry: Any, key: PRNGKeyArray) -> tuple[Any, Trajectory]:
            twins, smallest = carry
            indices = jax.random.randint(key, (every, batch), 0, lane.size)
            twins, rates = jax.lax.scan(lambda c, i: step(c, i, lane), twins, indices)
            ((params, state), (other, _)) = twins
            smallest = jnp.minimum(smallest, _smallest_gap(state))
            return (twins, smallest), _recorded(
                params, other, start, smallest, rates.mean(), lane, pool
            )

        carry = ((first, first), jnp.full((), jnp.inf))
        return jax.lax.scan(record, carry, jax.random.split(index_key, records))[1]

    return jax.vmap(train)(lanes)


def _samples(pool: Pool, rows: Int32[Array, "B"]) -> tuple[Array, Array]:
    """Features and labels of rows of the pool."""
    return pool.features[rows], pool.labels[rows]


def _recorded(
    params: Params,
    other: Params,
    start: Params,
    smallest: Array,
    rate: Array,
    lane: Lane,
    pool: Pool,
) -> Trajectory:
    """Makes one record of a lane."""
    own = losses(params, *_samples(pool, lane.rows))
    inside = jnp.arange(lane.rows.size) < lane.size
    held, twins = (losses(p, pool.held_features, pool.held_labels) for p in (params, other))
    return Trajectory(
        distance=optax.tree.norm(optax.tree.sub(params, other)),
        travelled=optax.tree.norm(optax.tree.sub(params, start)),
        train_loss=jnp.where(inside, own, 0.0).sum() / lane.size.astype(jnp.float32),
        held_loss=held.mean(),
        loss_change=jnp.abs(held - twins).mean(),
        kappa=smallest,
        gate=rate,
    )


def _smallest_gap(state: optax.OptState) -> Float[Array, ""]:
    """The smallest gap between two singular values of any matrix's momentum."""
    is_momentum = lambda x: isinstance(x, HeavyBallState)  # noqa: E731
    found = filter(is_momentum, jax.tree.leaves(state, is_leaf=is_momentum))
    return jnp.stack([gap(x) for own in found for x in jax.tree.leaves(own.mu)]).min()
