"""What an optimizer did, computed from its state, its updates and the parameters.

All functions here are pure and work under jit; none of them prints. Measurements of matrices are
returned as ``{path: [*batch]}``, one float32 number per matrix (float64 for
float64 parameters), with paths as in `describe`.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.engine.axes import batch_shape, to_matrices
from mimuon_jax.linalg.complex_matrices import as_real
from mimuon_jax.linalg.measures import frobenius, rms, spectral_norm
from mimuon_jax.linalg.products import product
from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.gates import ThresholdGateState
from mimuon_jax.transforms.references import PerMatrix
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Float, Inexact, Matrices, Tree

#: One array ``[*batch]`` per path.
Values = dict[str, Array]


def gates(state: optax.OptState) -> list[ThresholdGateState]:
    """All threshold gates of an optimizer's state, outermost first.

    Args:
      state: state of any optimizer, wrapped or chained in any way.

    Returns:
      The states; empty if there is no gate.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import muon
      >>> from mimuon_jax.diagnostics import gates
      >>> gates(muon(0.02).init({"kernel": jnp.ones((2, 2))}))
      []
    """
    is_gate = lambda x: isinstance(x, ThresholdGateState)  # noqa: E731
    found = [leaf for leaf in jax.tree.leaves(state, is_leaf=is_gate) if is_gate(leaf)]
    return [*found, *(inner for gate in found for inner in gates((gate.inner, gate.otherwise)))]


def has_gate(state: optax.OptState) -> bool:
    """Whether an optimizer's state holds a threshold gate.

    Args:
      state: state of any optimizer.

    Returns:
      True if there is at least one gate, so that `gate_rate` and the like can be called.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import has_gate
      >>> has_gate(mimuon(0.02).init({"kernel": jnp.ones((2, 2))}))
      True
    """
    return bool(gates(state))


def gate_rate(state: optax.OptState) -> Float[Array, ""]:
    """Fraction of the matrices whose gate was open at the last step.

    Args:
      state: state of an optimizer with at least one threshold gate.

    Returns:
      A float32 number in [0, 1]: 1 if every matrix was orthogonalized; 0 before the first step.

    Raises:
      ValueError: there is no gate.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import gate_rate
      >>> tx, grads = mimuon(0.02), {"kernel": jnp.ones((2, 2))}
      >>> _, state = tx.update(grads, tx.init(grads), grads)
      >>> float(gate_rate(state))
      1.0
    """
    decisions = list(gate_decisions(state).values())
    total = sum(leaf.size for leaf in decisions)
    return sum((x.sum(dtype=jnp.float32) for x in decisions), jnp.zeros((), jnp.float32)) / max(
        total, 1
    )


def gate_decisions(state: optax.OptState) -> Values:
    """For which matrices the gate was open at the last step.

    Args:
      state: state of an optimizer with a threshold gate.

    Returns:
      ``{path: bool [*batch]}``.

    Raises:
      ValueError: there is no gate.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import gate_decisions
      >>> tx, grads = mimuon(0.02, threshold=2.0), {"up": jnp.eye(2), "down": 3 * jnp.eye(2)}
      >>> _, state = tx.update(grads, tx.init(grads), grads)
      >>> {path: bool(is_open) for path, is_open in gate_decisions(state).items()}
      {'down': True, 'up': False}
    """
    return _of_gates(state, lambda gate: gate.open)


def gate_measures(state: optax.OptState) -> Values:
    """The measure of every matrix, as the gate computed it at the last step.

    Args:
      state: state of an optimizer with a threshold gate.

    Returns:
      ``{path: float [*batch]}``, in the unit of the gradient estimate, or divided by its
      reference (``relative_to``).

    Raises:
      ValueError: there is no gate.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import gate_measures
      >>> tx, grads = mimuon(0.02), {"up": jnp.eye(2), "down": 3 * jnp.eye(2)}
      >>> _, state = tx.update(grads, tx.init(grads), grads)
      >>> {path: float(measured) for path, measured in gate_measures(state).items()}
      {'down': 3.0, 'up': 1.0}
    """
    return _of_gates(state, lambda gate: gate.measured)


def describe_gate(state: optax.OptState) -> str:
    """One line about the gate at the last step, to print while training; not for use under jit.

    Args:
      state: state of an optimizer with a threshold gate.

    Returns:
      How many gates were open, and the range of what was compared with the threshold.

    Raises:
      ValueError: there is no gate.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import describe_gate
      >>> tx, grads = mimuon(0.02, threshold=9.0), {"up": jnp.eye(2), "down": 3 * jnp.eye(2)}
      >>> describe_gate(tx.update(grads, tx.init(grads), grads)[1])
      'the gate was open for 0 of 2 matrices, which measured 1 (up) to 3 (down)'
    """
    opened = [is_open for x in gate_decisions(state).values() for is_open in jnp.ravel(x).tolist()]
    measures = gate_measures(state).items()
    found = [(value, path) for path, x in measures for value in jnp.ravel(x).tolist()]
    (least, first), (most, last) = min(found), max(found)
    return (
        f"the gate was open for {sum(opened)} of {len(opened)} matrices, which measured "
        f"{least:.3g} ({first}) to {most:.3g} ({last})"
    )


def orthogonality_error(updates: Tree, matrices: Matrices = None) -> Values:
    """How far every matrix is from a multiple of an orthogonal one.

    ``||Y Y^T / rms(Y)^2 - I||_F / sqrt(k)``, with ``k`` the smaller side: the root mean square of
    ``s_i^2 / mean(s^2) - 1``. It does not depend on the scale of ``Y``, so learning rates and gains
    do not matter.

    Args:
      updates: tree of updates, gradients or parameters.
      matrices: as in `partition`.

    Returns:
      ``{path: [*batch]}``: 0 for an orthogonal matrix, ``sqrt(k - 1)`` for a matrix of rank one,
      and 0 for a zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.diagnostics import orthogonality_error
      >>> {path: float(e) for path, e in orthogonality_error({"w": -3 * jnp.eye(2)}).items()}
      {'w': 0.0}
    """

    def error(x: Inexact[Array, "b m n"]) -> Float[Array, "b"]:
        x = as_real(x) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x
        x = x if x.shape[-2] <= x.shape[-1] else x.mT
        size = rms(x)[:, None, None]
        y = x.astype(size.dtype) / jnp.where(size == 0, 1.0, size)
        identity = jnp.eye(x.shape[-2], dtype=size.dtype)
        deviation = product(y, y.mT) - jnp.where(size == 0, 0.0, identity)
        return frobenius(deviation) / x.shape[-2] ** 0.5

    return _of_matrices(error, updates, matrices)


def stable_rank(tree: Tree, matrices: Matrices = None) -> Values:
    """The stable rank of every matrix, ``||M||_F^2 / ||M||_2^2``.

    Args:
      tree: tree of updates, gradients or parameters.
      matrices: as in `partition`.

    Returns:
      ``{path: [*batch]}``, in [1, k]: 1 for a matrix of rank one, ``k`` for an orthogonal matrix,
      and 0 for a zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.diagnostics import stable_rank
      >>> round(float(stable_rank({"w": jnp.diag(jnp.array([2.0, 1.0]))})["w"]), 4)
      1.25
    """

    def rank(x: Inexact[Array, "b m n"]) -> Float[Array, "b"]:
        largest = spectral_norm(x)
        return jnp.square(frobenius(x) / jnp.where(largest == 0, 1.0, largest))

    return _of_matrices(rank, tree, matrices)


def update_rms(tree: Tree) -> Values:
    """The root mean square of the entries of every array, matrix or not.

    Args:
      tree: tree of updates, gradients or parameters.

    Returns:
      ``{path: float32 []}``, in the unit of the entries; 0 for an array without entries.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.diagnostics import update_rms
      >>> {path: float(size) for path, size in update_rms({"bias": -2 * jnp.ones(3)}).items()}
      {'bias': 2.0}
    """
    flat = [jnp.asarray(x).reshape(1, -1) for x in jax.tree.leaves(tree)]
    paths = [role.path for role in roles(tree, lambda params: jax.tree.map(lambda _: None, params))]
    sizes = (frobenius(x) / max(x.size, 1) ** 0.5 for x in flat)
    return dict(zip(paths, sizes, strict=True))


def singular_value_quantiles(
    tree: Tree, quantiles: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), matrices: Matrices = None
) -> Values:
    """Quantiles of the singular values of every matrix, computed by SVD.

    Args:
      tree: tree of updates, gradients or parameters.
      quantiles: in [0, 1]: 0 is the smallest singular value, 1 the largest.
      matrices: as in `partition`.

    Returns:
      ``{path: [*batch, quantiles]}``, in the unit of the entries.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax.diagnostics import singular_value_quantiles
      >>> tree = {"w": jnp.diag(jnp.array([1.0, 3.0]))}
      >>> singular_value_quantiles(tree, (0.0, 0.5, 1.0))["w"].tolist()
      [1.0, 2.0, 3.0]
    """

    def spectrum(x: Inexact[Array, "b m n"]) -> Float[Array, "b q"]:
        s = jnp.linalg.svd(x.astype(wide_dtype(x.dtype)), compute_uv=False)
        return jnp.quantile(s, jnp.asarray(quantiles, s.dtype), axis=-1).T

    return _of_matrices(spectrum, tree, matrices)


def _of_gates(state: optax.OptState, field: Callable[[ThresholdGateState], PerMatrix]) -> Values:
    """One field of all gates, by path; if gates are nested, that of the outermost gate."""
    found = gates(state)
    if not found:
        raise ValueError(
            f"no threshold gate in a state of type {type(state).__name__}: only mimuon and chains "
            "with threshold_gate have one (check with diagnostics.has_gate)"
        )
    values: Values = {}
    for gate in reversed(found):
        per_matrix = field(gate)
        values |= per_matrix if isinstance(per_matrix, Mapping) else {}
    return values


def _of_matrices(function: Callable[[Array], Array], tree: Tree, matrices: Matrices) -> Values:
    """``function`` of every matrix ``[b, m, n] -> [b, ...]``, by path."""
    values = {}
    for leaf, role in zip(jax.tree.leaves(tree), roles(tree, matrices), strict=True):
        if role.numbers is not None:
            value = function(to_matrices(jnp.asarray(leaf), role.numbers))
            values[role.path] = value.reshape(
                batch_shape(role.shape, role.numbers) + value.shape[1:]
            )
    return values
