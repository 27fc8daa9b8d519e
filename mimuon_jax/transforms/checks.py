"""Checks of numbers and gradients that a caller passes, with errors that name the way out."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from mimuon_jax.transforms.given import is_absent, named_leaves
from mimuon_jax.types import LearningRate, Number, Tree


def check_number(name: str, value: Any, fits: Callable[[float], bool], requirement: str) -> None:
    """Raises unless the value is a number that fits; a traced number cannot be checked.

    Args:
      name: of the argument.
      value: what the caller passed.
      fits: whether a number is allowed; False for NaN.
      requirement: which numbers are allowed, to follow "must be".

    Raises:
      ValueError: another number or type. For a schedule, the message states the way out.

    Example:
      >>> from mimuon_jax.transforms.checks import check_number
      >>> check_number("clip", -1.0, lambda x: x > 0, "> 0")
      Traceback (most recent call last):
      ValueError: clip=-1.0 must be > 0
    """
    if callable(value):
        raise ValueError(
            f"{name}={value} is a function, but only learning rates may be schedules here; use "
            f"optax.inject_hyperparams(optimizer, static_args=(...))(..., {name}=schedule), where "
            "static_args names the arguments that are functions but not schedules (such as "
            "'matrices') or must be Python numbers (such as a number as 'gain')"
        )
    if not isinstance(value, Tracer) and not fits(_as_float(value)):
        raise ValueError(f"{name}={value} must be {requirement}")


def check_decay(decay: Number, name: str = "decay") -> None:
    """Refuses a decay outside [0, 1)."""
    check_number(
        name,
        decay,
        lambda x: 0 <= x < 1,
        "in [0, 1): 0 keeps no memory, 1 would never forget",
    )


def check_weight(name: str, weight: Number) -> None:
    """Refuses a weight below 0."""
    check_number(name, weight, lambda x: x >= 0, ">= 0; 0 turns it off")


def check_share(name: str, share: Number, ends: str) -> None:
    """Refuses a number outside [0, 1]; ``ends`` states what 0 and 1 mean."""
    check_number(name, share, lambda x: 0 <= x <= 1, f"in [0, 1]: {ends}")


def check_positive(name: str, value: Number, meaning: str) -> None:
    """Refuses a number that is not finite and > 0; ``meaning`` states what it is."""
    check_number(name, value, lambda x: 0 < x < math.inf, f"a positive number, {meaning}")


def check_static(name: str, value: Any, fits: Callable[[float], bool], requirement: str) -> None:
    """Refuses what is not a Python number that fits: shapes or the function depend on it."""
    if not isinstance(value, int | float) or not fits(value):
        raise ValueError(
            f"{name}={value} must be a Python number {requirement}; under "
            f'optax.inject_hyperparams pass static_args=("{name}",)'
        )


def check_rate(name: str, rate: LearningRate) -> None:
    """Refuses a learning rate that is not a finite number of at least 0; schedules pass."""
    if not callable(rate):
        check_number(
            name, rate, lambda x: 0 <= x < math.inf, "a finite number >= 0, or a schedule of steps"
        )


def check_gradients(gradients: Tree, params: Tree) -> None:
    """Raises unless there is a gradient for every parameter, and for nothing else.

    Args:
      gradients: a tree of gradients or updates.
      params: the parameters, or a part of the state that is shaped like them.

    Raises:
      ValueError: a gradient is None, missing or of another shape, or there is one too many.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.transforms.checks import check_gradients
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> check_gradients(params | {"bias": None}, params)
      Traceback (most recent call last):
      ValueError: the gradient of parameter 'bias' is None or missing; give zeros if it should not
      move, or leave it out of the parameters given to `init` as well
    """
    if jax.tree.structure(gradients) == jax.tree.structure(params):
        _check_shapes(gradients, params)
        return
    given, expected = (
        {"/".join(names) for names, leaf in named_leaves(tree) if not is_absent(leaf)}
        for tree in (gradients, params)
    )
    if expected - given:
        raise ValueError(
            f"the gradient of parameter {min(expected - given)!r} is None or missing; give zeros "
            "if it should not move, or leave it out of the parameters given to `init` as well"
        )
    if given - expected:
        raise ValueError(
            f"there is a gradient for {min(given - expected)!r}, which is not a parameter; the "
            f"parameters are {', '.join(sorted(expected))}"
        )


def _check_shapes(gradients: Tree, params: Tree) -> None:
    """Raises if a gradient has another shape than its parameter."""
    given, expected = ([jnp.shape(x) for x in jax.tree.leaves(t)] for t in (gradients, params))
    if given == expected:
        return
    names = ["/".join(names) for names, leaf in named_leaves(params) if not is_absent(leaf)]
    name, one, other = next(
        found for found in zip(names, given, expected, strict=True) if found[1] != found[2]
    )
    raise ValueError(
        f"the gradient of parameter {name!r} has the shape {one}, and the parameter {other}; take "
        "gradients with respect to these parameters"
    )


def _as_float(value: Any) -> float:
    """The value as a float; NaN if it is not a number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan
