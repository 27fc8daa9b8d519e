"""References of the gate: numbers per matrix that scale with the gradient."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.momentum import zeros_like
from mimuon_jax.transforms.roles import roles
from mimuon_jax.types import Array, Float, Matrices, State, Tree

#: One array ``[*batch]`` per matrix parameter, by its path as in `describe`. It does not have the
#: structure of the parameters, because frameworks give such trees the sharding and metadata of the
#: parameters, and these arrays have another rank. Without any matrix it is a scalar 0, not an empty
#: dict: `optax.tree_map_params` calls ``init`` with a tree without leaves and expects a leaf here.
PerMatrix: TypeAlias = Mapping[str, Array] | Array

#: Names of references.
ReferenceName: TypeAlias = Literal["peak", "average", "noise"]

_MEMORY = 0.99  # "average" and "noise" look back over some 100 steps


class ReferenceState(NamedTuple):
    """Memory of a reference."""

    previous: Tree  # M_{t-1} of the matrices for "noise", like the parameters; otherwise ()
    statistic: optax.OptState  # one or two numbers per matrix


class _AverageState(NamedTuple):
    """Memory of `_average`."""

    mean: PerMatrix  # 0 before the first finite value
    weight: PerMatrix  # of all values so far, below 1


class Reference(NamedTuple):
    """A statistic of the measure of the updates, or of the measure of their change."""

    statistic: optax.GradientTransformation  # of `PerMatrix`
    of_change: bool = False

    def init(self, params: Tree, values: PerMatrix, matrices: Matrices) -> ReferenceState:
        """The memory before the first step, with ``M_0 = 0``."""
        previous = _only_matrices(zeros_like(params), matrices) if self.of_change else ()
        return ReferenceState(previous, self.statistic.init(values))

    def relative(
        self,
        measured: dict[str, Float[Array, "*batch"]],
        updates: Tree,
        state: State,
        measure: Callable[[Tree], dict[str, Array]],
        matrices: Matrices,
    ) -> tuple[dict[str, Float[Array, "*batch"]], ReferenceState]:
        """The measures, each divided by its reference, and the memory of the next step."""
        values, previous = measured, ()
        if self.of_change:
            matrices_alone = _only_matrices(updates, matrices)
            change = jax.tree.map(_difference, matrices_alone, state.previous)
            values = measure(change)
            previous = jax.tree.map(lambda x, p: x.astype(p.dtype), matrices_alone, state.previous)
        kept = as_kept(values, jnp.float32)
        found, statistic = self.statistic.update(kept, state.statistic)
        if jax.tree.structure(found) != jax.tree.structure(kept):
            raise ValueError(
                "relative_to must return one reference per measure: it got "
                f"{jax.tree.structure(kept)} and returned {jax.tree.structure(found)}"
            )
        ratios = jax.tree.map(_ratio, measured, found) if measured else {}
        return ratios, ReferenceState(previous, statistic)


def as_reference(
    relative_to: ReferenceName | optax.GradientTransformation | None,
) -> Reference | None:
    """The reference that an argument ``relative_to`` stands for; None: an absolute threshold."""
    if relative_to is None:
        return None
    if isinstance(relative_to, optax.GradientTransformation):
        return Reference(relative_to)
    if isinstance(relative_to, str) and relative_to in REFERENCES:
        return REFERENCES[relative_to]
    raise ValueError(
        f"relative_to={relative_to!r} is unknown; use {', '.join(map(repr, REFERENCES))}, None, or "
        "a transformation of the measures, such as optax.ema(0.9)"
    )


def as_kept(values: dict[str, Array], dtype: jax.typing.DTypeLike) -> PerMatrix:
    """The arrays by path as a state holds them: a scalar 0 if there are none."""
    return values or jnp.zeros((), dtype)


def _peak() -> optax.GradientTransformation:
    """The largest finite value so far."""

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, Tree]:
        del params
        new = jax.tree.map(
            lambda x, peak: jnp.where(jnp.isfinite(x), jnp.maximum(x, peak), peak), updates, state
        )
        return new, new

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _average(memory: float) -> optax.GradientTransformation:
    """The average of the finite values so far, of which older ones count less."""

    def init(params: Tree) -> _AverageState:
        mean, weight = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return _AverageState(mean, weight)

    def update(updates: Tree, state: State, params: Tree = None) -> tuple[Tree, _AverageState]:
        del params

        def weighed(old: Array, x: Array) -> Array:
            return jnp.where(jnp.isfinite(x), memory * old + (1 - memory), old)

        def moved(mean: Array, x: Array, weight: Array) -> Array:
            # Exactly x at first, where the share is exactly 1.
            share = (1 - memory) / jnp.where(weight > 0, weight, 1)
            return jnp.where(jnp.isfinite(x), mean + share * (x - mean), mean)

        weight = jax.tree.map(weighed, state.weight, updates)
        mean = jax.tree.map(moved, state.mean, updates, weight)
        return mean, _AverageState(mean, weight)

    return optax.GradientTransformation(init, update)


#: References by name.
REFERENCES: dict[ReferenceName, Reference] = {
    "peak": Reference(_peak()),
    "average": Reference(_average(_MEMORY)),
    "noise": Reference(_average(_MEMORY), of_change=True),
}


def _ratio(measured: Array, reference: Array) -> Array:
    """``measured / reference``: 1 where both are equal, also at 0, else ``inf`` at 0."""
    quotient = measured / jnp.where(reference == 0, 1, reference)
    quotient = jnp.where(reference == 0, jnp.inf, quotient)
    return jnp.where(measured == reference, 1, quotient).astype(measured.dtype)


def _difference(x: Array, y: Array) -> Array:
    """``x - y`` in a wide dtype."""
    wide = wide_dtype(x.dtype, y.dtype)
    return x.astype(wide) - y.astype(wide)


def _only_matrices(tree: Tree, matrices: Matrices) -> Tree:
    """The tree with every auxiliary leaf masked."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        x if role.numbers is not None else optax.MaskedNode()
        for x, role in zip(leaves, roles(tree, matrices), strict=True)
    )
