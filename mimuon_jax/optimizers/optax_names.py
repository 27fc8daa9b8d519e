"""Argument names of `optax.contrib.muon`, for those who port: which argument here is meant."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

#: ``{name in optax: {argument here: how to write it}}``; the first that an optimizer has is meant.
_MEANT: dict[str, dict[str, str]] = {
    "beta": {
        "momentum": "a decay; optax's average of gradients is momentum=ema(beta, debias=True) of "
        "muon",
        "b1": "it has the same meaning",
    },
    "ns_steps": {
        "orthogonalizer": "for example functools.partial(newton_schulz, "
        "schedule=polar_express(ns_steps))",
        "method": "see spectral_power",
    },
    "ns_coeffs": {
        "orthogonalizer": "'jordan', 'dion' or functools.partial(newton_schulz, "
        "schedule=Schedule(triples))",
        "method": "see spectral_power",
    },
    "mu_dtype": {"state_dtype": "it has the same meaning"},
    "consistent_rms": {
        "gain": "as a number it has the same meaning in muon; optax's None is 'width'",
        "rms": "it has the same meaning, but is always a number",
    },
    "muon_weight_dimension_numbers": {"matrices": "it takes the same trees and functions"},
    "adam_learning_rate": {"auxiliary_learning_rate": "optax's None is learning_rate"},
    "adam_weight_decay": {
        "auxiliary_weight_decay": "it has the same meaning",
        "auxiliary": "for example auxiliary=optax.adamw(3e-4, weight_decay=...)",
    },
    "preconditioning": {"orthogonalizer": "'frobenius' is what all of them do"},
    "adaptive": {},
    "nesterov": {},
    "weight_decay": {},
    "weight_decay_mask": {},
}
_MEANT |= {
    name: {"auxiliary": f"for example auxiliary=optax.adamw(3e-4, {theirs}=...)"}
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
            advice = next(
                (f"use {meant}: {how}" for meant, how in _MEANT[name].items() if meant in own),
                "it has no equal here",
            )
            raise TypeError(
                f"{optimizer.__name__}() does not take {name}, an argument of optax.contrib.muon; "
                f"{advice}. from_optax_muon takes all arguments of optax.contrib.muon"
            )
        return optimizer(*args, **kwargs)

    return explaining
