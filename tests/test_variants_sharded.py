"""The variants of Muon on meshes: the same updates, and one exchange there and one back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

import mimuon_jax as mj
from benchmarks.hlo import work
from mimuon_jax import QKSpec
from tests import contract
from tests.test_sharding import make_mesh

pytestmark = pytest.mark.standard_promotion

SHAPES = {"up": (16, 24), "down": (24, 16), "scanned": (3, 16, 24)}
NUMBERS = {"scanned": MuonDimensionNumbers(1, 2)}
FSDP = {"up": P("x"), "down": P("x"), "scanned": P(None, "x")}
BOTH = {"up": P("x", "y"), "down": P("y", "x"), "scanned": P(None, "x", "y")}
#: How often all matrices of a step go to their owners and back.
EXCHANGES = {
    "normuon": 1,
    "adamuon": 1,
    "muonh": 1,
    "normuonh": 1,
    "scion": 1,
    "dion2": 1,
    "polargrad": 1,
    "namo": 1,
    "muonclip": 1,
}


def tree(seed):
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def placed(tree, mesh, specs):
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in tree.items()}


@functools.cache
def made(name):
    specs = {"": QKSpec("block", "q")}
    specs = {"specs": specs} if "specs" in contract.parameters(name) else {}
    tx = contract.make(name, matrices=NUMBERS, **specs)
    return tx, jax.jit(functools.partial(contract.update, tx))


def two_steps(name, place=lambda tree: tree):
    tx, step = made(name)
    params = place(tree(0))
    state = tx.init(params)
    for seed in (1, 2):
        updates, state = step(place(tree(seed)), state, params)
        params = optax.apply_updates(params, updates)
    return updates, state


#: What assembles every matrix on every device. Entries that are nearly zero in the basis are
#: divided by numbers as small. On Auto axes the compiler chooses the layout, unless told.
REPLICATED = ("soap", "soap_muon")
CASES = [
    (name, *case)
    for name in (*EXCHANGES, *REPLICATED)
    for case in [
        (8, AxisType.Explicit, BOTH),
        (8, AxisType.Auto, FSDP),
        (2, AxisType.Explicit, FSDP),
        (1, AxisType.Explicit, FSDP),
    ]
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices", "kind", "specs"), CASES)
def test_a_mesh_changes_nothing(name, devices, kind, specs):
    mesh = make_mesh(devices, kind)
    actual, state = two_steps(name, lambda tree: placed(tree, mesh, specs))
    expected, _ = two_steps(name)
    chosen = name in REPLICATED and kind == AxisType.Auto
    bar = 1e-4 if name in REPLICATED else 5e-6  # observed: 1e-5
    for key, x in actual.items():
        assert chosen or x.sharding.is_equivalent_to(NamedSharding(mesh, specs[key]), x.ndim)
        np.testing.assert_allclose(x, expected[key], atol=bar, rtol=0)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        key = getattr(path[-1], "key", None)
        if key in SHAPES and x.shape == SHAPES[key] and not chosen:  # a momentum, a second moment
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, specs[key]), x.ndim), path


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "normuon")) for n in EXCHANGES]
)
@pytest.mark.parametrize("specs", [FSDP, BOTH], ids=["fsdp", "2d"])
def test_matrices_travel_once_and_sums_alone_besides(name, specs):
    sizes = (8, 1) if specs is FSDP else (4, 2)
    mesh = make_mesh(8, AxisType.Explicit, sizes)
    tx, step = made(name)
    params = placed(tree(0), mesh, specs)
    text = step.lower(params, tx.init(params), params).compile().as_text() or ""
    done = work(text)
    assert done.collectives["all-to-all"] == 2 * EXCHANGES[name]
    assert set(done.collectives) <= {"all-to-all", "all-reduce"}
    sums = work("\n".join(line for line in text.splitlines() if " all-to-all(" not in line))
    assert sums.received <= 4 * 16 * 24  # less than the smallest matrix


SUMS_ALONE = {
    "units": mj.normalize_units(0.9, per="longer", matrices=NUMBERS),
    "hyperball": optax.chain(
        mj.match_param_norm(matrices=NUMBERS), optax.scale(-0.1), mj.retract(matrices=NUMBERS)
    ),
    "brake": optax.chain(
        mj.radial_brake(matrices=NUMBERS),
        mj.floor_relative(0.3, matrices=NUMBERS),
        optax.scale(-0.1),
        mj.pin_radius(matrices=NUMBERS),
        mj.add_cautious_decay(0.1),
    ),
    "namo": mj.scale_by_namo(mj.ema(0.9), optax.identity(), matrices=NUMBERS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS_ALONE)
def test_what_needs_norms_alone_exchanges_sums_alone(name):
    mesh, tx = make_mesh(8, AxisType.Explicit, (4, 2)), SUMS_ALONE[name]
    params = placed(tree(0), mesh, BOTH)
    step = jax.jit(functools.partial(contract.update, tx))
    done = work(step.lower(params, tx.init(params), params).compile().as_text() or "")
    assert set(done.collectives) == {"all-reduce"}
    assert done.received <= 4 * 16 * 24  # less than the smallest matrix
