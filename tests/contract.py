"""How the conformance tests find every optimizer and building block, build it and take a step."""

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mimuon_jax

# Values for arguments without a default, by name. A new argument needs an entry here.
REQUIRED = {
    "learning_rate": 0.125,
    "decay": 0.9,
    "p": 0.5,
    "threshold": 0.5,
    "transformation": mimuon_jax.orthogonalize("jordan"),
    "auxiliary": optax.sgd(0.1),
    "split": None,
    "weight_decay": 0.1,
    "floor": 2.0,
    "momentum": mimuon_jax.heavy_ball(0.9),
    # Parameters of every tree of the suite, each as the queries of one head.
    "specs": {r"^w|^$|tall|bias": mimuon_jax.QKSpec("block", "q")},
}
# Values that differ from the default: a threshold that opens the gate for one matrix of the tree
# and closes it for the other, and the methods that compile fastest.
CHOSEN = {"threshold": 0.5, "orthogonalizer": "jordan", "method": "svd", "limit": 0.25, "every": 2}
# Of a longer side without full rank the basis is partly arbitrary.
CHOSEN |= {"sides": "shorter", "update_every": 1}
CHOSEN |= {"radius": 2.0, "auxiliary_radius": 3.0}  # of Scion, in whose balls parameters are
# Arguments that must be Python numbers, because shapes or the method depend on them.
STATIC = {
    "fraction",
    "every",
    "first_step",
    "limit",
    "strength",
    "p",
    "max_dim",
    "update_every",
    "damping",
    "ns_steps",
}


def makes_transformation(function: Any) -> bool:
    """Whether a public name is an optimizer or building block, by its annotated return type."""
    if not callable(function):
        return False
    returned = inspect.signature(function, eval_str=True).return_annotation
    return isinstance(returned, type) and issubclass(returned, optax.GradientTransformation)


FACTORIES: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: getattr(mimuon_jax, name)
    for name in mimuon_jax.__all__
    if makes_transformation(getattr(mimuon_jax, name))
}
# Variants of Muon and their pieces, made of parts that other factories have too. By default a few
# tests run for them; all others are `slow`, and run for every factory.
FAMILY = {"normalize_units", "normuon", "adamuon", "add_cautious_decay"}
FAMILY |= {"match_param_norm", "retract", "muonh", "normuonh"}
FAMILY |= {"floor_relative", "radial_brake", "pin_radius"}
FAMILY |= {"lookahead_ema", "outer_nesterov", "track_average"}
FAMILY |= {"lmo", "scion", "select_slices", "dion2", "polargrad"}
FAMILY |= {"namo", "scale_by_namo"}
FAMILY |= {"contra", "scale_by_dual_norm", "clip_spectrum"}
FAMILY |= {"qk_clip", "muonclip"}
FAMILY |= {"precondition_kron", "scale_by_soap", "soap", "soap_muon"}


def marked(names: Iterable[str], slow: Container[str] = FAMILY) -> list[Any]:
    """The names as cases of a parametrization, some of them marked `slow`."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


every_factory = pytest.mark.parametrize("name", marked(FACTORIES))
every_factory_by_default = pytest.mark.parametrize("name", FACTORIES)


def parameters(name: str) -> set[str]:
    """The names of a factory's parameters."""
    return set(inspect.signature(FACTORIES[name]).parameters)


OPTIMIZERS = [name for name in FACTORIES if "learning_rate" in parameters(name)]
every_optimizer = pytest.mark.parametrize("name", marked(OPTIMIZERS))
# For tests in which each factory takes a second or more to compile. By default they run for three,
# which cover a gate, a second gradient, and a state of other shapes than the parameters.
SLOW = set(FACTORIES) - {"mimuon"}


def mostly_slow(names: Iterable[str]) -> pytest.MarkDecorator:
    """A parametrization by factories in which most are marked `slow`."""
    return pytest.mark.parametrize("name", marked(names, SLOW))


def arguments(name: str) -> dict[str, Any]:
    """Arguments with which a factory can be called."""
    found = {key: CHOSEN[key] for key in parameters(name) & CHOSEN.keys()}
    for key, parameter in inspect.signature(FACTORIES[name]).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert key in REQUIRED, f"give {key!r} of {name} a value in contract.REQUIRED"
            found[key] = REQUIRED[key]
    return found


def make(name: str, **settings: Any) -> optax.GradientTransformation:
    """A transformation with the arguments of the suite, except for the given ones."""
    tx = FACTORIES[name](**arguments(name) | settings)
    assert isinstance(tx, optax.GradientTransformation)
    return tx


def grad_fn(params: Any) -> Any:
    """The gradient of ``sum((w / 2 + 0.1)^2)``, for any tree; MVR2 needs a second gradient."""
    return jax.tree.map(lambda w: 0.5 * w + 0.1, params)


# What some transformations need besides; a head beyond the limit of 100.
EXTRA = {"grad_fn": grad_fn, "max_logits": {"block": jnp.asarray([160.0])}}


def update(tx: Any, gradient: Any, state: Any, params: Any, **extra: Any) -> Any:
    """One step of any transformation, or of `optax.MultiSteps`."""
    if isinstance(tx, optax.GradientTransformation):
        tx = optax.with_extra_args_support(tx)
    return tx.update(gradient, state, params, **EXTRA | extra)


@functools.cache
def compiled(name: str) -> tuple[Callable, Callable]:
    """``init`` and the compiled `update` of a factory, shared by all tests of one tree."""
    tx = make(name)
    return tx.init, jax.jit(functools.partial(update, tx))


def run(step: Callable, state: Any, gradients: list[Any], params: Any) -> tuple[list[Any], Any]:
    """The updates of several steps at the same parameters, and the last state."""
    updates = []
    for gradient in gradients:
        passed_on, state = step(gradient, state, params)
        updates.append(passed_on)
    return updates, state


def run_compiled(name: str, gradients: list[Any], params: Any = None) -> tuple[list[Any], Any]:
    """`run` from the start, by the shared compiled step."""
    init, step = compiled(name)
    params = PARAMS if params is None else params
    return run(step, init(params), gradients, params)


def run_eagerly(tx: Any, gradients: list[Any], params: Any = None) -> tuple[list[Any], Any]:
    """`run` from the start, outside jit."""
    params = PARAMS if params is None else params
    return run(functools.partial(update, tx), tx.init(params), gradients, params)


def tree(seed: int, tall: float) -> dict[str, Any]:
    """A matrix, one of the transposed shape, a vector and a scalar, in float32."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    return {
        "wide": normal(3, 5),
        "block": {"tall": tall * normal(5, 3), "bias": normal(3)},
        "temperature": normal(),
    }


PARAMS = tree(0, tall=1.0)
GRADIENTS = [tree(seed, tall=0.01) for seed in range(1, 7)]


def like(tree: Any, dtype: Any) -> Any:
    """The tree in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def matrices(tree: Any) -> list[jax.Array]:
    """The leaves of the tree that are matrices."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]


def finite(tree: Any) -> bool:
    """Whether no leaf holds inf or NaN."""
    return all(bool(np.all(np.isfinite(np.asarray(x, np.float64)))) for x in jax.tree.leaves(tree))


def rounding(x: np.ndarray) -> float:
    """How much the compiler's choice of roundings may change an array, relative to its maximum.

    XLA fuses, reorders and contracts products and sums (``a * b + c`` in one rounding instead of
    two) as the instruction set and the rest of the program allow. Each choice moves an entry by a
    unit in the last place, and a product of matrices adds up as many as it has rows.
    """
    return 8 * float(jnp.finfo(x.dtype).eps) * max(x.size, 1) ** 0.5


def assert_close(actual: Any, expected: Any, rtol: float | None = None) -> None:
    """Equal trees except for errors of ``rtol``, relative to the largest magnitude of each leaf.

    The default is `rounding`, for two programs that compute the same.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        place = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), place
        exact = not jnp.issubdtype(x.dtype, jnp.floating)
        bar = 0.0 if exact else rounding(y) if rtol is None else rtol
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error, scale = np.max(np.abs(x - y), initial=0), np.max(np.abs(y), initial=0)
        assert error <= bar * scale, f"{place}: {error / scale} of {scale}, more than {bar}"


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal trees, bit for bit except for the sign of zero.

    For two computations outside `jax.jit`, or two calls of one compiled program. Results of two
    compiled programs are compared with `assert_close`.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects one entry per program that XLA compiles within this context."""
    found: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        del duration, details
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
