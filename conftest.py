"""Settings of every test and doctest, made before JAX starts its first device."""

import doctest
import functools
import gc
import os
import tempfile
from collections.abc import Generator, Iterator

# Tests are about CPU devices; `JAX_PLATFORMS=cuda,cpu pytest -m gpu` reaches an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# By configuration, not by XLA_FLAGS: processes that a test starts keep their own device count.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# No program is compiled twice. JAX decides at the first compilation, which may come with an import,
# whether it has a cache: a fixture would be too late.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")  # deleted with this process
    jax.config.update("jax_compilation_cache_dir", COMPILED.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skips tests of float16 on a processor for which XLA cannot compile its conversions."""
    try:
        yield
    except Exception as error:
        cause = error.exc_info[1] if isinstance(error, doctest.UnexpectedException) else error
        if isinstance(cause, jax.errors.JaxRuntimeError) and not has_float16():
            pytest.skip("XLA compiles no float16 for this processor: it has no F16C instructions")
        raise


@functools.cache
def has_float16() -> bool:
    """Whether XLA compiles a conversion to float16; for SSE4.2 it does not."""
    try:
        jax.jit(lambda x: x.astype("float16")).lower(1.5).compile()
    except jax.errors.JaxRuntimeError as error:
        return "materialize symbols" not in str(error)
    return True


def pytest_collection_finish() -> None:
    """Spares the garbage collector what imports have made: 350,000 objects."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs() -> Iterator[None]:
    """Frees what JAX has compiled and traced for a file: kept to the end, it fills gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
