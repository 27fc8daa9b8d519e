"""Argument names of `optax.contrib.muon`, for those who port: which argument here is meant."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

#: ``{name in optax: (argument here, how to write it)}``.
_MEANT = {
    "beta": ("momentum", "optax's average of gradients is muon's momentum=ema(beta, debias=True)"),
    "ns_steps": (
        "orthogonalizer",
        "for example functools.partial(newton_schulz, schedule=polar_express(ns_steps))",
    ),
    "ns_coeffs": (
        "orthogonalizer",
        "'jordan', 'dion' or functools.partial(newton_schulz, schedule=Schedule(triples))",
    ),
    "mu_dtype": ("state_dtype", "it has the same meaning"),
    "consistent_rms": ("gain", "as a number it has the same meaning; optax's None is 'width'"),
    "muon_weight_dimension_numbers": ("matrices", "it takes the same trees and functions"),
    "adam_learning_rate": ("auxiliary_learning_rate", "optax's None is learning_rate"),
    "adam_weight_decay": ("auxiliary_weight_decay", "it has the same meaning"),
    "adaptive": ("gain", "adaptive=True has no equal here, and False is the only choice"),
    "preconditioning": ("orthogonalizer", "'frobenius' is what all of them do"),
}
_MEANT |= {
    name: ("auxiliary", f"for example auxiliary=optax.adamw(3e-4, {theirs}=...)")
    for name, theirs in [
        ("eps", "eps"),
        ("adam_b1", "b1"),
        ("adam_b2", "b2"),
        ("adam_eps_root", "eps_root"),
    ]
}


def explains_optax_names(
    optimizer: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Lets an optimizer explain an argument name of `optax.contrib.muon` that it does not have.

    Args:
      optimizer: its signature and documentation stay as they are.

    Returns:
      The optimizer. Given such a name, it raises a TypeError that says which argument is meant.

    Example:
      >>> from mimuon_jax import muon
      >>> muon(3e-4, mu_dtype="bfloat16")
      Traceback (most recent call last):
      TypeError: muon() does not take mu_dtype, an argument of optax.contrib.muon; use state_dtype:
      it has the same meaning. from_optax_muon takes all arguments of optax.contrib.muon
    """
    own = inspect.signature(optimizer).parameters

    @functools.wraps(optimizer)
    def explaining(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for name in kwargs.keys() & _MEANT.keys() - own.keys():
            meant, how = _MEANT[name]
            if meant in own:
                raise TypeError(
                    f"{optimizer.__name__}() does not take {name}, an argument of "
                    f"optax.contrib.muon; use {meant}: {how}. from_optax_muon takes all arguments "
                    "of optax.contrib.muon"
                )
        return optimizer(*args, **kwargs)

    return explaining
