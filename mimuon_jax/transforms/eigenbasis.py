"""The eigenbasis of Shampoo's statistics, of both sides of a batch of matrices.

For matrices ``[m, n]``, ``A`` and ``C`` are running means of ``G G^T [m, m]`` and ``G^T G [n, n]``,
and ``Q_A``, ``Q_C`` their eigenvectors. A side without statistics has ``Q = I``.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mimuon_jax.engine.axes import batch_shape, matrix_shape
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.given import Role
from mimuon_jax.types import Array, Number

#: Names of choices of sides.
SidesName: TypeAlias = Literal["both", "reduction", "output", "shorter"]

#: Which sides of ``[m, n]`` have statistics, before the limit on their length.
SIDES: dict[SidesName, Callable[[int, int], tuple[bool, bool]]] = {
    "both": lambda m, n: (True, True),
    "reduction": lambda m, n: (True, False),
    "output": lambda m, n: (False, True),
    "shorter": lambda m, n: (m <= n, n < m),
}


class Side(NamedTuple):
    """The statistics of one side of the ``b`` matrices of a parameter, float32 or float64."""

    mean: Array  # [b, k, k]: A or C, divided by scale^2
    vectors: Array  # [b, k, k]: Q, the columns by decreasing eigenvalue


class Kronecker(NamedTuple):
    """Both sides of the ``b`` matrices of a parameter; None: without statistics."""

    scale: Array  # [b, 1, 1]: largest |entry| of all gradients so far
    left: Side | None
    right: Side | None


def start(dtype: jnp.dtype, role: Role, max_dim: int, sides: SidesName) -> Kronecker:
    """The statistics of one parameter before the first gradient."""
    assert role.numbers is not None
    real = jnp.finfo(wide_dtype(dtype)).dtype
    b = math.prod(batch_shape(role.shape, role.numbers))
    lengths = matrix_shape(role.shape, role.numbers)

    def side(k: int) -> Side:  # new arrays every time: a state may be donated
        return Side(jnp.zeros((b, k, k), real), jnp.tile(jnp.eye(k, dtype=real)[None], (b, 1, 1)))

    left, right = (
        side(k) if chosen and k <= max_dim else None
        for k, chosen in zip(lengths, SIDES[sides](*lengths), strict=True)
    )
    return Kronecker(jnp.zeros((b, 1, 1), real), left, right)


def rotated(
    x: Float[Array, "b m n"], left: Side | None, right: Side | None, *, back: bool = False
) -> Float[Array, "b m n"]:
    """``Q_A^T X Q_C``, or ``Q_A X Q_C^T`` to come back."""
    if left is not None:
        x = product(left.vectors if back else left.vectors.mT, x)
    if right is not None:
        x = product(x, right.vectors.mT if back else right.vectors)
    return x


def refreshed(
    side: Side | None, gram: Float[Array, "b k k"], forget: Array, decay: Number, due: Array
) -> tuple[Side | None, Array | None]:
    """One side with one more gradient, and the order in which its old vectors now are.

    ``due``: 0 keeps the vectors, 1 finds them, 2 improves them by ``Q <- qr(A Q)``. They count as
    constants in derivatives.
    """
    if side is None:
        return None, None
    mean = jax.lax.stop_gradient(decay * forget * side.mean + (1 - decay) * gram)
    unchanged = jnp.broadcast_to(jnp.arange(gram.shape[-1])[None], gram.shape[:2])

    def found() -> tuple[Array, Array]:
        return jnp.linalg.eigh(mean)[1][..., ::-1], unchanged

    def improved() -> tuple[Array, Array]:
        values = jnp.sum(side.vectors * product(mean, side.vectors), axis=-2)
        order = jnp.argsort(-values, axis=-1)
        vectors = jnp.take_along_axis(side.vectors, order[:, None, :], -1)
        return jnp.linalg.qr(product(mean, vectors))[0], order

    branches = (lambda: (side.vectors, unchanged), found, improved)
    vectors, order = jax.lax.switch(due, branches)
    return Side(mean, vectors), order
