"""JAX settings of every test and doctest, made before JAX starts its first device."""

import os

# Tests are about CPU devices; `JAX_PLATFORMS=cuda,cpu pytest -m gpu` reaches an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# By configuration, not by XLA_FLAGS: processes that a test starts keep their own device count.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
