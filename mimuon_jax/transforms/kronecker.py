"""SOAP's preconditioner: entries divided as in Adam, in the eigenbasis of Shampoo's statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.axes import from_matrices, to_matrices
from mimuon_jax.linalg.measures import frobenius
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import check_matrices, wide_dtype
from mimuon_jax.transforms.checks import check_decay, check_positive, check_weight
from mimuon_jax.transforms.eigenbasis import SIDES, Kronecker, SidesName, refreshed, rotated, start
from mimuon_jax.transforms.momentum import ema
from mimuon_jax.transforms.preconditioner import check_static_number
from mimuon_jax.transforms.roles import roles
from mimuon_jax.transforms.whole import replicated, sharded_like
from mimuon_jax.types import Array, Matrices, Number, State, Tree


class KroneckerState(NamedTuple):
    """Memory of `precondition_kron` and `scale_by_soap`."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # shape (), int32: updates
    v: Tree  # second moment in the basis, over scale^2, like the parameters; auxiliary: masked
    sides: Mapping[str, Kronecker] | Array  # by path; a scalar 0 without any matrix
    momentum: optax.OptState


#: ``(B, G, v, steps, unit) -> (Y, v)``: ``B`` and ``G`` are in the basis, divided by the unit.
_Rule = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


def precondition_kron(
    momentum: optax.GradientTransformation,
    *,
    decay: Number = 0.9,
    power: Number = 0.5,
    eps: Number = 1e-8,
    update_every: int = 1,
    max_dim: int = 10_000,
    sides: SidesName = "both",
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides momentum by powers of its second moment, in the eigenbasis of Shampoo's statistics.

    With ``B`` what ``momentum`` passes on: ``P = Q_A^T B Q_C``,
    ``v <- decay v + (1 - decay) P^2``, ``Y = Q_A (P / max(v, eps^2)^power) Q_C^T``; the result is
    ``Y |B| / |Y|``, to be orthogonalized. Then ``A`` and ``C`` get the gradient. The basis is found
    by eigenvectors at the first step, which passes on ``B``, and by a QR step later. Auxiliary
    leaves get what ``momentum`` passes on.

    Args:
      momentum: a transformation of gradients, such as ``ema(0.95, nesterov=True)``. It is inside,
        since the statistics are of the gradients themselves.
      decay: of the second moment and the statistics, in [0, 1).
      power: >= 0; 0 passes on ``B``, 1/2 divides by the root of the second moment.
      eps: > 0, in the unit of the gradients.
      update_every: steps from one QR step to the next; 1: at every step.
      max_dim: longest side with statistics.
      sides: ``"both"``; ``"reduction"`` or ``"output"``: that one; ``"shorter"``: of a square
        matrix the reduction side. Until a longer side has had gradients of full rank, its basis is
        partly arbitrary, and depends on roundings.
      matrices: as in `partition`.

    Returns:
      A transformation with a `KroneckerState`: two ``[k, k]`` arrays per side, replicated, and one
      array like every matrix.

    Raises:
      ValueError: a number out of range or an unknown ``sides``; at ``init``, as `partition`; at
        ``update``, a complex matrix.

    Source:
      Vyas et al., "SOAP", 2024 (arXiv 2409.11321); SOAP-Muon in modded-nanogpt, optimization
      track, pull requests 278 and 321.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import heavy_ball, precondition_kron
      >>> tx, grads = precondition_kron(heavy_ball(0.0)), {"kernel": jnp.diag(jnp.array([7.0, 1]))}
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> tx.update(grads, state)[0]["kernel"].round(3).tolist()  # equal entries, the same norm
      [[5.0, 0.0], [0.0, 5.0]]
    """
    check_decay(decay)
    check_weight("power", power)
    check_positive("eps", eps, "in the unit of the gradients")

    def rule(b: Array, g: Array, v: Array, count: Array, unit: Array) -> tuple[Array, Array]:
        del g, count
        v = decay * v + (1 - decay) * jnp.square(b)
        least = jnp.maximum(jnp.square(jnp.minimum(eps / unit, 1e15)), 1e-30)
        y = b / jnp.maximum(v, least) ** power
        size, length = (frobenius(x)[:, None, None] for x in (y, b))
        return y * (length / jnp.where(size == 0, 1.0, size)), v

    return _in_basis(rule, momentum, decay, update_every, max_dim, sides, matrices, waits=False)


def scale_by_soap(
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    *,
    update_every: int = 10,
    max_dim: int = 10_000,
    sides: SidesName = "both",
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam in the eigenbasis of Shampoo's statistics: SOAP.

    ``M <- b1 M + (1 - b1) G``, ``v <- b2 v + (1 - b2) (Q_A^T G Q_C)^2``, both with Adam's
    correction of their bias; the result is ``Q_A (Q_A^T M Q_C / (sqrt(v) + eps)) Q_C^T``. The first
    gradient only makes the basis: its update is zero. Auxiliary leaves get ``M``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment and the statistics, in [0, 1).
      eps: > 0, in the unit of the gradients.
      update_every: as in `precondition_kron`.
      max_dim: as in `precondition_kron`; a matrix both of whose sides are longer has Adam's update.
      sides: as in `precondition_kron`.
      matrices: as in `partition`.

    Returns:
      A transformation with a `KroneckerState`.

    Raises:
      ValueError: as `precondition_kron`.

    Source:
      Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024 (arXiv 2409.11321).

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import scale_by_soap
      >>> tx, grads = scale_by_soap(), {"kernel": jnp.diag(jnp.array([9.0, 1.0]))}
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> tx.update(grads, state)[0]["kernel"].round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    check_decay(b1, "b1")
    check_decay(b2, "b2")
    check_positive("eps", eps, "in the unit of the gradients")

    def rule(b: Array, g: Array, v: Array, count: Array, unit: Array) -> tuple[Array, Array]:
        v = b2 * v + (1 - b2) * jnp.square(g)
        one, two = (1 - jnp.asarray(x, v.dtype) ** count for x in (b1, b2))
        # 1e-20 of the largest gradient, so that zero is not divided by zero.
        return b / one / (jnp.sqrt(v / two) + jnp.maximum(eps / unit, 1e-20)), v

    return _in_basis(rule, ema(b1), b2, update_every, max_dim, sides, matrices, waits=True)


def _moved(rule: _Rule, decay: Number, update_every: int, waits: bool) -> Callable[..., tuple]:
    """One step of equal matrices, `(B, G, v, basis, count) -> (update, v, basis)`."""

    @jax.jit  # outside jit every call of `lax.switch` would compile again
    def moved(
        b: Array, g: Array, v: Array, old: Kronecker, count: Array
    ) -> tuple[Array, Array, Kronecker]:
        scale = jnp.maximum(old.scale, jnp.max(jnp.abs(g), axis=(1, 2), keepdims=True))
        unit = jnp.where(scale == 0, 1.0, scale)  # squares of g itself overflow above 1e19
        forget, g, b = jnp.square(old.scale / unit), g / unit, b / unit
        p, q = (rotated(x, old.left, old.right) for x in (b, g))
        y, new = rule(p, q, forget * v, jnp.maximum(count, 1).astype(g.dtype), unit)
        y = rotated(y, old.left, old.right, back=True)
        if waits or old.left is not None or old.right is not None:
            y, new = jnp.where(count == 0, b, y), jnp.where(count == 0, 0.0, new)
        due = jnp.where(count == 0, 1, jnp.where(count % update_every == 0, 2, 0))
        left, order = refreshed(old.left, product(g, g.mT), forget, decay, due)
        new = new if order is None else jnp.take_along_axis(new, order[:, :, None], 1)
        right, order = refreshed(old.right, product(g.mT, g), forget, decay, due)
        new = new if order is None else jnp.take_along_axis(new, order[:, None, :], 2)
        return y if waits else y * unit, new, Kronecker(scale, left, right)

    return moved


def _in_basis(
    rule: _Rule,
    momentum: optax.GradientTransformation,
    decay: Number,
    update_every: int,
    max_dim: int,
    sides: SidesName,
    matrices: Matrices,
    *,
    waits: bool,
) -> optax.GradientTransformationExtraArgs:
    """Momentum, and the rule applied to it in the basis of every matrix.

    At the first step, which has no basis yet, the momentum is passed on; with ``waits`` zero, and
    the momentum begins one step later.
    """
    check_static_number("update_every", update_every, int, 1)
    check_static_number("max_dim", max_dim, int, 1)
    if sides not in SIDES:
        raise ValueError(f"sides={sides!r} is unknown; use {', '.join(map(repr, SIDES))}")
    estimate = optax.with_extra_args_support(momentum)

    moved = _moved(rule, decay, update_every, waits)

    def init(params: Tree) -> State:
        leaves, treedef = jax.tree.flatten(params)
        v, found = [], {}
        for leaf, role in zip(leaves, roles(params, matrices), strict=True):
            v.append(optax.MaskedNode())  # a scalar in its place would be taken for a parameter
            if role.numbers is not None:
                found[role.path] = start(leaf.dtype, role, max_dim, sides)
                v[-1] = jnp.zeros_like(leaf, dtype=found[role.path].scale.dtype)
        count = jnp.zeros((), jnp.int32)
        # Not an empty dict: optax.tree_map_params calls `init` with a tree without leaves.
        kept = found or jnp.zeros((), jnp.float32)
        return KroneckerState(count, treedef.unflatten(v), kept, estimate.init(params))

    def update(
        updates: Tree, state: State, params: Tree = None, **extra: object
    ) -> tuple[Tree, KroneckerState]:
        fed = updates
        if waits:
            fed = jax.tree.map(lambda g: jnp.where(state.count == 0, 0, g).astype(g.dtype), updates)
        passed_on, inner = estimate.update(fed, state.momentum, params, **extra)
        leaves, treedef = jax.tree.flatten(passed_on)
        gradients, moments = treedef.flatten_up_to(updates), treedef.flatten_up_to(state.v)
        decided, found = roles(updates, matrices), {}
        for i, role in enumerate(decided):
            if role.numbers is None:
                continue
            b = jnp.asarray(leaves[i])
            arrays = (b, jnp.asarray(gradients[i]), moments[i])
            check_matrices(b, f"the preconditioner of parameter {role.path!r}")
            wide = wide_dtype(b.dtype)
            whole = (to_matrices(replicated(x), role.numbers).astype(wide) for x in arrays)
            y, v, found[role.path] = moved(*whole, state.sides[role.path], state.count)
            leaves[i], moments[i] = (
                sharded_like(from_matrices(x, b.shape, role.numbers).astype(dtype), b)
                for x, dtype in ((y, b.dtype), (v, moments[i].dtype))
            )
        count = jnp.asarray(optax.safe_increment(state.count))
        kept = found or jnp.zeros((), jnp.float32)
        new = KroneckerState(count, treedef.unflatten(moments), kept, inner)
        return treedef.unflatten(leaves), new

    return optax.GradientTransformationExtraArgs(init, update)
