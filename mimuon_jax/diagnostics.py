"""What an optimizer did, read from its state and its updates; nothing here is printed."""

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.gates import ThresholdGateState
from mimuon_jax.types import Array, Float, Tree


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
    return [leaf for leaf in jax.tree.leaves(state, is_leaf=is_gate) if is_gate(leaf)]


def has_gate(state: optax.OptState) -> bool:
    """Whether an optimizer's state holds a threshold gate.

    Args:
      state: state of any optimizer.

    Returns:
      True if `gate_rate` has something to say.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import mimuon
      >>> from mimuon_jax.diagnostics import has_gate
      >>> has_gate(mimuon(0.02).init({"kernel": jnp.ones((2, 2))}))
      True
    """
    return bool(gates(state))


def gate_rate(state: optax.OptState) -> Float[Array, ""]:
    """Share of the matrices whose gate was open at the last step.

    Args:
      state: state of an optimizer with at least one threshold gate.

    Returns:
      Number in [0, 1], float32: 1 means every matrix was orthogonalized; 0 before the first step.

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
    found = gates(state)
    if not found:
        raise ValueError(
            f"no threshold gate in a state of type {type(state).__name__}: only mimuon and chains "
            "with threshold_gate have one (diagnostics.has_gate tells)"
        )
    decisions: list[Tree] = jax.tree.leaves([gate.open for gate in found])
    total = sum(leaf.size for leaf in decisions)
    return sum((x.sum(dtype=jnp.float32) for x in decisions), jnp.zeros(())) / max(total, 1)
