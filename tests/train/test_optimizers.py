"""Options of the optimizers: none is dead, and choices are those of the library."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimuon_jax.gains import GAINS
from mimuon_jax.measures import MEASURES
from mimuon_jax.orthogonalize import ORTHOGONALIZERS
from train.optimizers import OPTIMIZERS, AdamW, MiMuon, Muon, Optimizer, make_optimizer

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32),
    "bias": jnp.ones(4),
}
CHANGED = {
    "learning_rate": 0.03,
    "weight_decay": 0.5,
    "warmup_steps": 1,
    "final_fraction": 0.5,
    "clip_norm": 0.1,
    "momentum": 0.5,
    "orthogonalizer": "svd",
    "gain": "rms",
    "auxiliary_learning_rate": 0.5,
    "threshold": 0.0,
    "measure": "frobenius",
    "b1": 0.5,
    "b2": 0.5,
    "eps": 1.0,
}


@functools.cache
def after(options: Optimizer, steps: int = 2) -> dict:
    """Parameters after steps with fixed gradients."""
    optimizer, _ = make_optimizer(options, steps=steps, matrices=None)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        gradients = jax.tree.map(lambda x, i=step: jnp.cos(x * (i + 1)), PARAMS)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, f.name) for name, make in OPTIMIZERS.items() for f in dataclasses.fields(make)],
)
def test_every_option_changes_the_parameters(name: str, field: str):
    # The momentum's rms is 0.48 and 0.86, so the gate opens at the second step alone.
    options = OPTIMIZERS[name](**({"threshold": 0.6} if name == "mimuon" else {}))
    value = CHANGED[field] if field in CHANGED else not getattr(options, field)
    changed = after(dataclasses.replace(options, **{field: value}))
    assert any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(after(options)), jax.tree.leaves(changed), strict=True)
    )


@pytest.mark.parametrize(
    ("field", "table"),
    [("orthogonalizer", ORTHOGONALIZERS), ("gain", GAINS), ("measure", MEASURES)],
)
def test_choices_are_those_of_the_library(field: str, table: dict):
    assert set(typing.get_args(typing.get_type_hints(MiMuon)[field])) == set(table)


def test_decay_reaches_the_matrices_alone():
    for make in (AdamW, Muon, MiMuon):
        plain, decayed = after(make(weight_decay=0.0)), after(make(weight_decay=0.5))
        np.testing.assert_array_equal(plain["bias"], decayed["bias"])
        assert not np.array_equal(plain["kernel"], decayed["kernel"])


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0, [1.0, 0.853553, 0.5, 0.146447]),
        (1, [1.0, 1.0, 0.75, 0.25]),
        (2, [0.5, 1.0, 1.0, 0.5]),
        (None, [1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_schedule_rises_linearly_and_falls_as_a_cosine(warmup: int | None, expected: list):
    options = AdamW(learning_rate=1.0, warmup_steps=warmup)
    _, schedule = make_optimizer(options, steps=4, matrices=None)
    np.testing.assert_allclose([float(schedule(step)) for step in range(4)], expected, rtol=1e-5)


def test_the_derived_warm_up_is_a_tenth_of_the_run_and_at_most_300_steps():
    for steps, warmup in ((100, 10), (5000, 300)):
        _, schedule = make_optimizer(AdamW(learning_rate=1.0), steps=steps, matrices=None)
        assert float(schedule(0)) == pytest.approx(1 / warmup)
        assert float(schedule(warmup - 1)) == pytest.approx(1)


def test_clipping_bounds_the_gradient_and_inf_turns_it_off():
    huge = {"kernel": jnp.full((6, 4), 100.0), "bias": jnp.full(4, 100.0)}
    options = MiMuon(threshold=math.inf, momentum=0.0, learning_rate=1.0, weight_decay=0.0)
    norms = {}
    for clip in (2.0, math.inf):
        chosen = dataclasses.replace(options, clip_norm=clip, warmup_steps=0)
        optimizer, _ = make_optimizer(chosen, steps=1, matrices=None)
        updates, _ = optimizer.update(huge, optimizer.init(PARAMS), PARAMS)
        norms[clip] = float(jnp.linalg.norm(updates["kernel"]))
    assert norms[2.0] == pytest.approx(2.0 * math.sqrt(24 / 28), rel=1e-5)
    assert norms[math.inf] == pytest.approx(100 * math.sqrt(24), rel=1e-5)
