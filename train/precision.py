"""The precision of float32 products in models."""

import contextlib
from typing import Literal

import jax

Precision = Literal["default", "high", "highest"]


def products(precision: Precision) -> contextlib.AbstractContextManager[None]:
    """A context in which float32 products that ask for no precision are traced with this one.

    Products in 16 bits are the same at each precision, and the Muon family asks for its own.

    Args:
        precision: "default" leaves JAX's setting as it is.

    Example:
        >>> with products("highest"):
        ...     text = jax.jit(lambda x: x @ x).lower(jax.numpy.ones((2, 2))).as_text()
        >>> "precision = [HIGHEST, HIGHEST]" in text
        True
    """
    if precision == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)
