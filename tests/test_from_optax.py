"""`from_optax_muon` is `optax.contrib.muon`."""

import inspect
import itertools
import pydoc
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers

import mimuon_jax
from mimuon_jax import from_optax_muon
from tests import contract

pytestmark = pytest.mark.standard_promotion  # optax promotes dtypes implicitly

SHAPES = {"wide": (4, 6), "stacked": (2, 5, 3), "heads": (4, 2, 3), "conv": (2, 2, 3, 4), "b": (5,)}
NUMBERS = {
    "wide": Numbers(0, 1),
    "stacked": Numbers(1, 2),
    "heads": Numbers(0, (1, 2)),
    "conv": Numbers((0, 1, 2), 3),
    "b": None,
}
TRIPLES = ((3.0, -4.0, 1.8), (2.5, -2.6, 1.1), (2.0, -1.6, 0.6))
GRID = {
    "ns_coeffs": ["standard", "dion", (3.0, -4.0, 1.8), TRIPLES],
    "nesterov": [True, False],
    "muon_weight_dimension_numbers": [NUMBERS, lambda params: NUMBERS, None],
    "consistent_rms": [None, 0.2],
    "decay": [
        {},
        {"weight_decay": 0.3, "adam_weight_decay": 0.2},
        {
            "weight_decay": 0.3,
            "weight_decay_mask": {k: k in ("wide", "conv") for k in SHAPES},
            "mu_dtype": jnp.float32,
        },
    ],
    "rates": [
        {"learning_rate": 0.1},
        {
            "learning_rate": optax.linear_schedule(0.1, 0.0, 20),
            "adam_learning_rate": 0.01,
            "adam_b1": 0.8,
            "adam_b2": 0.9,
            "adam_eps_root": 1e-3,
            "eps": 1e-7,
        },
    ],
}
ALL = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
#: Enough for every value of every option.
FEW = [0, 10 + len(ALL) // 2, len(ALL) - 1]


def random_tree(seed):
    """A tree of matrices of rank 2, 3 and 4 and a vector."""
    random = np.random.default_rng(seed)
    return {k: jnp.asarray(random.standard_normal(s), jnp.float32) for k, s in SHAPES.items()}


def after(tx, steps=20):
    """The parameters after some steps."""
    params = random_tree(0)
    state = tx.init(params)
    # Of what the compiler spends on 286 pairs of programs, LLVM's optimizations are a third.
    step = jax.jit(tx.update, compiler_options={"xla_backend_optimization_level": 0})
    for seed in range(steps):
        updates, state = step(random_tree(1 + seed), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return {name: np.asarray(params[name]) for name in SHAPES}


def assert_equal_optimizers(options, rtol=2e-4):
    """Both optimizers arrive at the same parameters, relative to how far these have moved."""
    ours, theirs = after(from_optax_muon(**options)), after(optax.contrib.muon(**options))
    start = random_tree(0)
    for name, expected in theirs.items():
        moved = np.linalg.norm(expected - np.asarray(start[name]))
        assert moved > 0.01
        assert np.linalg.norm(ours[name] - expected) <= rtol * moved, name


def flat(options):
    """The keyword arguments of one point of the grid."""
    nested = {k: v for k, v in options.items() if k not in ("decay", "rates")}
    return nested | options["decay"] | options["rates"]


@pytest.mark.filterwarnings("ignore:.*matri")
@pytest.mark.parametrize(
    "index", [pytest.param(i, marks=[pytest.mark.slow] * (i not in FEW)) for i in range(len(ALL))]
)
def test_it_is_optax_muon_after_20_steps(index):
    assert_equal_optimizers(flat(ALL[index]))


@pytest.mark.slow
def test_momentum_in_bfloat16_is_optax_muon_to_its_rounding():
    options = flat(ALL[0]) | {"mu_dtype": jnp.bfloat16}
    assert_equal_optimizers(options, rtol=0.05)  # optax rounds at another place


def test_arguments_and_defaults_are_those_of_optax():
    ours = inspect.signature(from_optax_muon).parameters
    theirs = inspect.signature(optax.contrib.muon).parameters
    assert list(ours) == list(theirs)
    assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in theirs.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive": True}, "adaptive=True .* has no equal here"),
        ({"preconditioning": "aol"}, "preconditioning='aol' has no equal here"),
        ({"preconditioning": "spectral"}, "preconditioning='spectral' has no equal here"),
        ({"ns_coeffs": "jordan"}, "ns_coeffs='jordan' is unknown; use 'standard', 'dion'"),
        ({"ns_coeffs": (1.0, 2.0)}, r"ns_coeffs has shape \(2,\); it must be \(3,\) or \(n, 3\)"),
        ({"ns_coeffs": "dion", "ns_steps": 4}, "ns_steps=4 is less than the 5 triples"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_has_no_equal_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        from_optax_muon(0.1, **options)


PORTED = [name for name in contract.OPTIMIZERS if name != "from_optax_muon"]
THEIRS = inspect.signature(optax.contrib.muon).parameters
#: Arguments of optax that nothing corresponds to, besides ``adaptive``.
WITHOUT_EQUAL = {
    "dion2": {"nesterov"},
    "muon_mvr1": {"nesterov"},
    "muon_mvr2": {"nesterov"},
    "muonh": {"weight_decay", "weight_decay_mask", "consistent_rms"},
    "normuonh": {"weight_decay", "weight_decay_mask", "consistent_rms"},
    "scion": {"consistent_rms"},
    "spectral_sgd": {"preconditioning"},
    "spectral_adam": {"preconditioning", "nesterov"},
    "sgdm": set(THEIRS) - {"beta", "mu_dtype"},
    "soap": {
        *("nesterov", "mu_dtype", "consistent_rms"),
        *("ns_coeffs", "ns_steps", "preconditioning"),
    },
    "shampoo": {
        *("beta", "nesterov", "mu_dtype", "consistent_rms"),
        *("ns_coeffs", "ns_steps", "preconditioning"),
    },
}


@pytest.mark.parametrize("name", PORTED)
def test_an_argument_of_optax_is_taken_or_explained(name):
    optimizer = getattr(mimuon_jax, name)
    own = inspect.signature(optimizer).parameters
    without_equal = WITHOUT_EQUAL.get(name, set()) | {"adaptive"}
    for argument in THEIRS.keys() - own.keys():
        with pytest.raises(TypeError, match=rf"^{name}\(\) does not take {argument}, an arg") as e:
            optimizer(0.1, **{argument: 0.5})
        meant = re.findall(r"; use (\w+): ", str(e.value))
        assert set(meant) <= own.keys()
        assert bool(meant) != (argument in without_equal), argument
        assert meant or "it has no equal here" in str(e.value)


def test_other_unknown_arguments_are_an_error_of_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentumm'"):
        mimuon_jax.muon(0.1, momentumm=0.5)


@pytest.mark.parametrize("name", contract.OPTIMIZERS)
def test_help_is_readable(name):
    text = pydoc.render_doc(getattr(mimuon_jax, name), renderer=pydoc.plaintext)
    signature = " ".join(text.split()).replace("( ", "(")  # Python 3.13 gives each argument a line
    assert "(learning_rate: 'LearningRate', *, " in signature
    assert "jaxtyping" not in text
    assert "Returns:" in text
