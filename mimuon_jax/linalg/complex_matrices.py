"""Complex matrices as real ones of twice the size."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Inexact

from mimuon_jax.types import Orthogonalizer


def as_real(x: Complex[Array, "*batch m n"]) -> Float[Array, "*batch 2*m 2*n"]:
    """``[[A, -B], [B, A]]`` of ``A + iB``.

    Sums, products and transposes (of the complex matrix: conjugate transposes) of such matrices are
    such matrices. The singular values are those of ``A + iB``, each twice, and the orthogonal
    factor is that of ``A + iB`` in the same form; so is every odd polynomial and spectral power.

    Args:
      x: complex matrices ``[..., m, n]``.

    Returns:
      ``[..., 2m, 2n]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.linalg.complex_matrices import as_real
      >>> as_real(jnp.array([[1 + 2j]])).tolist()
      [[1.0, -2.0], [2.0, 1.0]]
    """
    upper = jnp.concatenate([x.real, -x.imag], axis=-1)
    lower = jnp.concatenate([x.imag, x.real], axis=-1)
    return jnp.concatenate([upper, lower], axis=-2)


def as_complex(x: Float[Array, "*batch two_m two_n"]) -> Complex[Array, "*batch m n"]:
    """Undoes `as_real`."""
    m, n = x.shape[-2] // 2, x.shape[-1] // 2
    return x[..., :m, :n] + 1j * x[..., m:, :n]


class RealOrComplex(NamedTuple):
    """A function of real matrices that takes complex ones too, in the form of `as_real`."""

    function: Orthogonalizer

    def __call__(self, x: Inexact[Array, "*batch m n"]) -> Inexact[Array, "*batch m n"]:
        """The function of the matrices."""
        if not jnp.issubdtype(x.dtype, jnp.complexfloating):
            return self.function(x)
        return as_complex(self.function(as_real(x))).astype(x.dtype)
