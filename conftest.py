"""JAX settings of every test and doctest, made before JAX starts its first device."""

import functools
import os
from collections.abc import Callable
from typing import Any

# Tests are about CPU devices; `JAX_PLATFORMS=cuda,cpu pytest -m gpu` reaches an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import optax

# By configuration, not by XLA_FLAGS: processes that a test starts keep their own device count.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _lenient(function: Callable) -> Callable:
    """The same function, run under JAX's standard dtype promotion."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped


def _lenient_schedule(factory: Callable) -> Callable:
    """The same factory, its schedules run under standard dtype promotion."""
    return functools.wraps(factory)(lambda *args, **kwargs: _lenient(factory(*args, **kwargs)))


# What optax 0.2.8 itself cannot do under strict promotion: it mixes floats with int32 counts. Our
# code around these stays strict. `MultiSteps` alone runs ours leniently too.
optax.tree.bias_correction = _lenient(optax.tree.bias_correction)  # adam, adamw, ema, muon
optax.cosine_decay_schedule = _lenient_schedule(optax.cosine_decay_schedule)
optax.warmup_cosine_decay_schedule = _lenient_schedule(optax.warmup_cosine_decay_schedule)
optax.MultiSteps.update = _lenient(optax.MultiSteps.update)
