"""Options of the optimizers: each has an effect, and choices are those of the library."""

import dataclasses
import functools
import inspect
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mimuon_jax
from mimuon_jax.linalg.measures import MEASURES
from mimuon_jax.linalg.powers import METHODS
from mimuon_jax.transforms.gains import GAINS
from mimuon_jax.transforms.orthogonalize import ORTHOGONALIZERS
from mimuon_jax.transforms.variance_reduction import Mvr2State
from mimuon_jax.transforms.wrappers import LookaheadState
from train.errors import BadInput
from train.optimizers import (
    OPTIMIZERS,
    AdamW,
    MiMuon,
    Muon,
    MuonMVR2,
    Optimizer,
    SpectralSGD,
    make_optimizer,
)
from train.optimizers.options import LIMITS

pytestmark = pytest.mark.standard_promotion

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32),
    "bias": jnp.ones(4),
}
SPECS = {"kernel": mimuon_jax.QKSpec("layers", "q")}
LARGEST = {"layers": jnp.asarray([90.0, 20.0])}
CHANGED = {
    "auxiliary_weight_decay": 0.5,
    "learning_rate": 0.03,
    "weight_decay": 0.5,
    "warmup_steps": 1,
    "final_fraction": 0.5,
    "cooldown": 0.5,
    "clip_norm": math.inf,
    "lookahead": 0.6,
    "lookahead_decay": 0.5,
    "outer_every": 1,
    "momentum": 0.5,
    "sgd_momentum": 0.5,
    "muon_weight": 0.1,
    "sgd_weight": 0.1,
    "gamma": 0.9,
    "clip": 0.1,
    "p": 0.3,
    "method": "svd",
    "max_dim": 5,
    "update_every": 1,
    "damping": 0.5,
    "grafting": "sgd",
    "orthogonalizer": "svd",
    "gain": "rms",
    "auxiliary_learning_rate": 0.5,
    "threshold": 0.0,
    "measure": "frobenius",
    "relative_to": "peak",
    "b1": 0.5,
    "b2": 0.9,
    "eps": 1.0,
    "beta2": 0.2,
    "per": "longer",
    "rms": 0.1,
    "radius": 2.0,
    "auxiliary_radius": 2.0,
    "fraction": 1.0,
    "tau": 10.0,
    "power": 0.0,
    "sides": "shorter",
    "alpha": 0.25,
}


# Options without an effect at the defaults, and the settings beside which they have one.
BESIDE = {
    ("mimuon", None): {"threshold": 0.6},  # rms of M: 0.48, 0.69; the gate opens at step 2 alone
    ("adamuon", "momentum"): {"nesterov": False},  # signs again
    ("dion2", "momentum"): {"fraction": 1.0},  # otherwise it takes more steps than these
    ("muonh", "measure"): {"measure": "spectral"},
    ("normuonh", "measure"): {"measure": "spectral"},
    ("normuonh", "per"): {"per": "output"},
    ("soap_muon", "update_every"): {"update_every": 5},
    ("muonclip", "gain"): {"gain": "width"},
    ("muonclip", "alpha"): {"tau": 10.0},
    ("lion", None): {"b2": 0.5},  # only signs count: the momentum has to be worth something
    ("spectral_sgd", "gain"): {"p": 0.0},
    ("spectral_adam", "gain"): {"p": 0.0},
}

FAST = ("mimuon", "musgd", "adamw", "lion")
WRAPPERS = ("lookahead", "lookahead_decay", "outer_every")  # of any optimizer alike


def ahead(state: object) -> bool:
    """Whether this is the state of `lookahead_ema`."""
    return isinstance(state, LookaheadState)


def squares(params: dict, step: int) -> jax.Array:
    """A loss whose gradient depends on the parameters and the step."""
    return sum((jnp.sin(x * (3.0 * step + 1.0)).sum() for x in params.values()), jnp.zeros(()))


@functools.cache
def after(options: Optimizer, steps: int = 2) -> dict:
    """Parameters after a few steps."""
    optimizer, _ = make_optimizer(options, steps=steps, matrices=None, specs=SPECS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        grad_fn = jax.grad(functools.partial(squares, step=step))
        extra = {"grad_fn": grad_fn, "max_logits": LARGEST}
        updates, state = optimizer.update(grad_fn(params), state, params, **extra)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def numeric_fields(make: type[Optimizer]) -> set[str]:
    """Names of the options that hold an int or a float."""
    hints = {name: str(hint) for name, hint in typing.get_type_hints(make).items()}
    return {name for name, hint in hints.items() if "int" in hint or "float" in hint}


def library_function(name: str):
    """The function that builds an optimizer of the command line."""
    return getattr(optax if name in ("adamw", "lion") else mimuon_jax, name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_are_the_keywords_of_the_library_in_its_order(name: str):
    shared = {f.name for f in dataclasses.fields(Optimizer)}
    own = [f.name for f in dataclasses.fields(OPTIMIZERS[name]) if f.name not in shared]
    keywords = list(inspect.signature(library_function(name)).parameters)
    assert own == [keyword for keyword in keywords if keyword in own]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_the_library_can_be_set(name: str):
    functions = {"learning_rate", "auxiliary", "matrices", "shardings", "split"}  # of the task
    functions |= {"specs"}
    functions |= {"weight_decay_mask", "norms"}
    types = {"mask", "mu_dtype", "eps_root"} | {"state_dtype"}  # of optax alone, and a dtype
    keywords = {*inspect.signature(library_function(name)).parameters} - functions - types
    fields = {f.name for f in dataclasses.fields(OPTIMIZERS[name])}
    assert keywords - fields <= ({"nesterov"} if name == "adamw" else set())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_number_has_a_limit(name: str):
    numbers = numeric_fields(OPTIMIZERS[name])
    assert numbers <= set(LIMITS)
    for field in numbers:
        for wrong in (math.nan, -1):
            with pytest.raises(BadInput, match=f"optimizer.{field}="):
                OPTIMIZERS[name](**{field: wrong})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        # All options are passed on by one method, `keywords`; four classes suffice to test it.
        pytest.param(name, f.name, marks=() if name in FAST else pytest.mark.slow)
        for name, make in OPTIMIZERS.items()
        for f in dataclasses.fields(make)
        if name in FAST or f.name not in WRAPPERS
    ],
)
def test_every_option_changes_the_parameters(name: str, field: str):
    beside = BESIDE.get((name, field), BESIDE.get((name, None), {}))
    beside = beside | ({"lookahead": 0.6} if field == "lookahead_decay" else {})
    options = OPTIMIZERS[name](**beside)
    value = CHANGED[field] if field in CHANGED else not getattr(options, field)
    steps = 3 if "soap" in name else 2  # a basis is used one step later
    changed = after(dataclasses.replace(options, **{field: value}), steps)
    before = jax.tree.leaves(after(options, steps))
    assert any(
        not np.array_equal(x, y) for x, y in zip(before, jax.tree.leaves(changed), strict=True)
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in OPTIMIZERS]
)
def test_defaults_descend(name: str):
    before, now = (float(squares(params, 0)) for params in (PARAMS, after(OPTIMIZERS[name]())))
    assert now < before


@pytest.mark.parametrize(
    ("make", "field", "table"),
    [
        (MiMuon, "orthogonalizer", ORTHOGONALIZERS),
        (MiMuon, "measure", MEASURES),
        (Muon, "gain", [*GAINS, "unflattened", type(None)]),
        (SpectralSGD, "method", [*ORTHOGONALIZERS, *METHODS, type(None)]),
    ],
)
def test_choices_are_those_of_the_library(make: type, field: str, table: dict):
    def choices(hint: object) -> set:
        parts = typing.get_args(hint)
        return set().union(*map(choices, parts)) if parts else {hint}

    assert choices(typing.get_type_hints(make)[field]) == set(table)


def test_a_power_that_the_method_cannot_compute_is_bad_input():
    with pytest.raises(BadInput, match="method='jordan' is unknown for"):
        make_optimizer(SpectralSGD(method="jordan"), steps=2, matrices=None)


def test_clipping_treats_both_gradients_of_mvr2_alike():
    # Without noise STORM's estimate is the gradient, whether or not it is clipped: with gamma = 1
    # any beta moves as beta = 0 does.
    storm = MuonMVR2(clip_norm=0.5, gamma=1.0, momentum=0.9, orthogonalizer="svd")
    params = {"kernel": jnp.diag(jnp.asarray([3.0, 2.0, 1.0]))}
    grad_fn = jax.grad(lambda params: (params["kernel"] ** 2).sum())
    moved = []
    for options in (storm, dataclasses.replace(storm, momentum=0.0)):
        optimizer, _ = make_optimizer(options, steps=3, matrices=None)
        now, state = params, optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grad_fn(now), state, now, grad_fn=grad_fn)
            now = optax.apply_updates(now, updates)
        is_estimate = lambda x: isinstance(x, Mvr2State)  # noqa: E731
        (memory,) = filter(is_estimate, jax.tree.leaves(state, is_leaf=is_estimate))
        estimate = memory.mu["kernel"]
        moved.append(estimate)
        assert float(jnp.linalg.norm(estimate)) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(*moved, rtol=1e-5, atol=1e-6)


def test_each_optimizer_is_told_the_facts_of_the_task_that_it_takes():
    told = {}

    def build(learning_rate, *, momentum, matrices, split):
        told.update(momentum=momentum, matrices=matrices, split=split)
        return optax.sgd(learning_rate)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(Optimizer):
        function = staticmethod(build)
        momentum: float = 0.5

    split = {"kernel": (2, 2)}
    make_optimizer(Own(), steps=2, matrices=None, split=split)
    assert told == {"momentum": 0.5, "matrices": None, "split": split}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OPTIMIZERS]
)
def test_fused_matrices_are_split_by_every_optimizer_of_the_library_that_can(name: str):
    can = "split" in inspect.signature(library_function(name)).parameters
    whole, parts = (
        make_optimizer(OPTIMIZERS[name](), steps=2, matrices=None, split=split, specs=SPECS)[0]
        for split in ({}, {"kernel": (1, 3)})
    )
    extra = {"grad_fn": lambda params: params, "max_logits": LARGEST}
    moved = []
    for optimizer in (whole, parts):
        updates, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(2 if name == "soap" else 1):  # its first update is zero
            updates, state = optimizer.update(PARAMS, state, PARAMS, **extra)
        moved.append(updates["kernel"])
    same = np.array_equal(*moved)
    assert same == (not can)


def test_decay_reaches_the_matrices_alone():
    for make in (AdamW, Muon, MiMuon):
        plain, decayed = (
            after(make(weight_decay=decay, clip_norm=math.inf)) for decay in (0.0, 0.5)
        )
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


def test_a_cooldown_is_linear_after_a_constant_rate():
    options = AdamW(learning_rate=1.0, warmup_steps=1, cooldown=0.5, final_fraction=0.2)
    _, schedule = make_optimizer(options, steps=8, matrices=None)
    rates = [float(schedule(step)) for step in range(8)]
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 1, 0.8, 0.6, 0.4], rtol=1e-5)


def test_lookahead_follows_the_learning_rate_in_the_middle_of_a_run():
    options = AdamW(learning_rate=0.1, warmup_steps=0, lookahead=0.6, clip_norm=math.inf)
    optimizer, schedule = make_optimizer(options, steps=10, matrices=None)
    params, state = {"bias": jnp.ones(3)}, optimizer.init({"bias": jnp.ones(3)})
    scales = []
    for _ in range(10):
        _, state = optimizer.update(params, state, params)
        (found,) = [x.scale for x in jax.tree.leaves(state, is_leaf=ahead) if ahead(x)]
        scales.append(float(found))
    expected = [0.6 * float(schedule(t)) / 0.1 if 2 <= t < 8 else 0.0 for t in range(1, 11)]
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


def test_lookahead_and_outer_steps_exclude_each_other():
    with pytest.raises(BadInput, match="exclude each other"):
        Muon(lookahead=0.6, outer_every=30)


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
