"""The variants of Muon against their float64 oracles: ten steps, errors within 1e-5.

Tree and tolerance are those of `test_against_oracles`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import mimuon_jax as mj
from tests import oracles
from tests.oracles import variants
from tests.oracles.comparison import assert_agreement, flat, nested, on_device, run

pytestmark = pytest.mark.standard_promotion

WHOLE = oracles.fixed_mixed_tree()
PART = WHOLE.part("dense/wide/kernel", "layers/attention/value/kernel", "norm/scale")
DECAY = {"weight_decay": 0.1}
HEAVY = oracles.heavy_ball(0.9, nesterov=True)


def library(tree, **settings: Any) -> dict[str, Any]:
    """The settings that all cases share, for the library."""
    matrices = {path: axes and MuonDimensionNumbers(*axes) for path, axes in tree.numbers.items()}
    shared = {"orthogonalizer": "svd", "auxiliary_learning_rate": 0.03, "momentum": 0.9}
    return {**shared, "matrices": nested(matrices), **settings}


def check(tree, optimizer, move, momentum=HEAVY, auxiliary=None, rtol=1e-5):
    """Compares an optimizer with an oracle on a tree."""
    expected = variants.variant(
        *tree[:2],
        numbers=tree.numbers,
        auxiliary=auxiliary or oracles.adamw(0.03),
        momentum=momentum,
        move=move,
    )
    assert_agreement(run(optimizer, *tree[:2]), expected, rtol)


@pytest.mark.parametrize(
    ("tree", "per", "gain"),
    [
        (PART, "longer", "width"),
        pytest.param(WHOLE, "output", "rms", marks=pytest.mark.slow),
        pytest.param(PART, "scalar", "spectral", marks=pytest.mark.slow),
    ],
)
def test_normuon(tree, per, gain):
    settings = {"beta2": 0.8, "per": per, "eps": 1e-8, "gain": gain, **DECAY}
    optimizer = mj.normuon(0.1, **settings, **library(tree))
    check(tree, optimizer, variants.normuon(learning_rate=0.1, **settings))


@pytest.mark.parametrize("tree", [PART, pytest.param(WHOLE, marks=pytest.mark.slow)])
def test_adamuon(tree):
    settings = {"beta2": 0.8, "rms": 0.2, "eps": 1e-8, **DECAY}
    optimizer = mj.adamuon(0.1, **settings, **library(tree))
    check(tree, optimizer, variants.adamuon(learning_rate=0.1, **settings))


@pytest.mark.parametrize("tree", [PART, pytest.param(WHOLE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("beta2", [1.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_muonh_and_normuonh(tree, beta2):
    if beta2 == 1:
        optimizer = mj.muonh(0.1, **library(tree))
    else:
        optimizer = mj.normuonh(0.1, beta2=beta2, **library(tree))
    check(tree, optimizer, variants.hyperball(learning_rate=0.1, beta2=beta2))


def chained(tree, *pieces):
    """Muon's momentum, then the pieces; AdamW for everything else."""
    matrices = library(tree)["matrices"]
    return mj.partition(
        optax.chain(mj.heavy_ball(0.9, nesterov=True), *pieces), optax.adam(0.03), matrices=matrices
    )


@pytest.mark.parametrize("per", ["matrix", pytest.param("output", marks=pytest.mark.slow)])
def test_brake_floor_and_pin(per):
    optimizer = chained(
        PART,
        mj.orthogonalize("svd"),
        mj.radial_brake(0.5, 0.9),
        mj.floor_relative(2.0, per=per),
        optax.scale_by_learning_rate(0.1),
        mj.pin_radius(),
    )
    settings = {"floor": 2.0, "per": per, "outward": 0.5, "inward": 0.9, "pin": True}
    check(PART, optimizer, variants.relative(learning_rate=0.1, **settings))


def test_cautious_decay():
    decay = mj.add_cautious_decay(0.5)
    descent = optax.scale_by_learning_rate(0.1)
    optimizer = chained(PART, mj.orthogonalize("svd"), decay, descent)
    check(PART, optimizer, variants.cautious(learning_rate=0.1, weight_decay=0.5))


def contra(s):
    shrunk = 1 - 0.2 * s / s[0]
    return shrunk * (len(s) / (shrunk**2).sum()) ** 0.5


SPECTRA = {
    "dual": (
        mj.scale_by_dual_norm(orthogonalizer="svd"),
        lambda s: s.sum() * np.ones_like(s),
        1e-5,
    ),
    "clip": (mj.clip_spectrum(9.0, method="svd"), lambda s: np.minimum(s, 9.0), 1e-5),
    # Five power iterations do not find the largest singular value exactly. Observed: 5e-3.
    "contra": (mj.contra(0.4, orthogonalizer="svd"), contra, 1e-2),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_functions_of_singular_values(name):
    piece, function, rtol = SPECTRA[name]
    optimizer = chained(PART, piece, optax.scale_by_learning_rate(0.01))
    move = variants.of_singular_values(function, learning_rate=0.01)
    check(PART, optimizer, move, rtol=rtol)


@pytest.mark.parametrize(
    ("tree", "fraction"), [(PART, 0.5), pytest.param(WHOLE, 0.25, marks=pytest.mark.slow)]
)
def test_dion2(tree, fraction):
    optimizer = mj.dion2(0.1, fraction=fraction, **library(tree), **DECAY)
    settings = {"learning_rate": 0.1, "gain": "spectral", **DECAY}
    check(tree, optimizer, variants.dion2(fraction=fraction, mu=0.9, **settings))


def square_tree():
    """Square matrices, whose statistics have full rank from the first gradient on."""
    random = np.random.default_rng(5)
    params = {"scanned": 0.1 * random.normal(size=(2, 5, 5)), "bias": random.normal(size=5)}
    means = {
        "scanned": np.stack([np.linalg.qr(random.normal(size=(5, 5)))[0] for _ in range(2)]),
        "bias": random.normal(size=5),
    }
    means["scanned"] = means["scanned"] @ np.diag(np.linspace(3, 1, 5)) @ means["scanned"][::-1]
    gradients = [
        {k: x + 0.15 * random.normal(size=x.shape) for k, x in means.items()} for _ in range(10)
    ]
    return oracles.MixedTree(params, gradients, {"scanned": ((1,), (2,)), "bias": None})


SQUARE = square_tree()
BASES = [
    (SQUARE, "both", (True, True), 1),
    (SQUARE, "output", (False, True), 3),
    pytest.param(SQUARE, "reduction", (True, False), 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("tree", "sides", "flags", "every"), BASES)
def test_soap_muon(tree, sides, flags, every):
    settings = {"beta2": 0.8, "power": 0.5, "gain": "width", **DECAY}
    optimizer = mj.soap_muon(0.1, sides=sides, update_every=every, **settings, **library(tree))
    move = variants.soap_muon(learning_rate=0.1, every=every, sides=flags, **settings)
    check(tree, optimizer, move)


@pytest.mark.parametrize(("tree", "sides", "flags", "every"), BASES)
def test_soap(tree, sides, flags, every):
    settings = {"b1": 0.9, "b2": 0.8, **DECAY}
    shared = {key: library(tree)[key] for key in ("auxiliary_learning_rate", "matrices")}
    optimizer = mj.soap(0.1, sides=sides, update_every=every, **settings, **shared)
    check(tree, optimizer, variants.soap(learning_rate=0.1, every=every, sides=flags, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soap", "soap_muon"])
def test_bases_of_the_shorter_sides(name):
    """On the whole tree: until a longer side has full rank, its basis is partly arbitrary."""
    given, settings = library(WHOLE), {"beta2": 0.8, "power": 0.25, "gain": "rms", **DECAY}
    if name == "soap":
        given = {key: given[key] for key in ("auxiliary_learning_rate", "matrices")}
        settings = {"b1": 0.9, "b2": 0.8, **DECAY}

    def move(*histories):
        m, n = histories[0][-1].shape
        sides = {"every": 1, "sides": (m <= n, n < m), "learning_rate": 0.1}
        return getattr(variants, name)(**settings, **sides)(*histories)

    optimizer = getattr(mj, name)(0.1, sides="shorter", update_every=1, **settings, **given)
    # The first updates of SOAP are nearly signs, in a basis with rounding errors. Observed: 3e-5.
    check(WHOLE, optimizer, move, rtol=1e-4 if name == "soap" else 1e-5)


@pytest.mark.slow
def test_polargrad():
    optimizer = mj.polargrad(0.1, **library(WHOLE), **DECAY)
    move = variants.of_singular_values(lambda s: 0 * s + s.sum(), learning_rate=0.1, **DECAY)
    check(WHOLE, optimizer, move, momentum=oracles.ema(0.9))


@pytest.mark.parametrize("tree", [PART, pytest.param(WHOLE, marks=pytest.mark.slow)])
def test_namo(tree):
    settings = {"beta2": 0.8, "eps": 1e-8, "gain": "width", **DECAY}
    move = variants.namo(learning_rate=0.1, **settings)
    check(tree, mj.namo(0.1, **settings, **library(tree)), move, momentum=oracles.ema(0.9))


@pytest.mark.slow
def test_scion():
    optimizer = mj.scion(0.1, radius=2.0, auxiliary=optax.adam(0.03), **scion_settings())
    settings = {"learning_rate": 0.1, "weight_decay": 1.0}
    move = variants.step(
        lambda w, g, m: 2 * oracles.GAINS["spectral"](*m[-1].shape) * oracles.orthogonal(m[-1]),
        **settings,
    )
    check(WHOLE, optimizer, move, momentum=oracles.heavy_ball(0.9))


@pytest.mark.parametrize(
    ("alpha", "group"), [(0.5, 1), pytest.param(0.25, 3, marks=pytest.mark.slow)]
)
def test_muonclip(alpha, group):
    """Query and value kernels as queries and keys of 3 layers; with groups 9 heads share 3 keys."""
    random = np.random.default_rng(3)
    maxima = [random.uniform(-4.0, 8.0, (3, 3 * group)) for _ in range(10)]
    axes = {"query/kernel": ("q", 2, 1), "value/kernel": ("k", 2, group)}
    specs = {
        name: mj.QKSpec("layers", role, axis=axis, group_size=width)
        for name, (role, axis, width) in axes.items()
    }
    if group > 1:  # 3 query heads are not enough for groups
        del specs["query/kernel"], axes["query/kernel"]
    tree = WHOLE.part(*(f"layers/attention/{name}" for name in axes), "norm/scale")
    settings = {"gain": "rms", "auxiliary_learning_rate": 0.03, **DECAY}
    tx = mj.muonclip(0.1, specs=specs, tau=4.0, alpha=alpha, **library(tree, **settings))

    @jax.jit
    def step(params, state, gradient, largest):
        updates, state = tx.update(gradient, state, params, max_logits={"layers": largest})
        return optax.apply_updates(params, updates), state

    params, found = on_device(tree.params), []
    state = tx.init(params)
    for gradient, largest in zip(tree.gradients, maxima, strict=True):
        largest = jnp.asarray(largest, jnp.float32)
        params, state = step(params, state, on_device(gradient), largest)
        found.append(flat(params))
    expected = variants.muonclip(
        *tree[:2],
        maxima,
        numbers=tree.numbers,
        kept=0.99,
        roles={f"layers/attention/{name}": entry for name, entry in axes.items()},
        tau=4.0,
        alpha=alpha,
        learning_rate=0.1,
        gain="rms",
        auxiliary=oracles.adamw(0.03),
        momentum=oracles.heavy_ball(0.9),
    )
    assert_agreement(found, expected)


def scion_settings():
    settings = library(WHOLE)
    return {key: settings[key] for key in ("orthogonalizer", "momentum", "matrices")}
