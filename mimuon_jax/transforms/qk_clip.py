"""QK-Clip: smaller query and key projections for heads whose attention logits grew too large."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mimuon_jax.linalg.scaling import wide_dtype
from mimuon_jax.transforms.checks import check_number, check_share
from mimuon_jax.transforms.given import is_absent, is_masked, named_leaves
from mimuon_jax.types import Array, Number, State, Tree

Part: TypeAlias = Literal["q", "k", "q_rope", "skip"]


class QKSpec(NamedTuple):
    """Where a parameter holds the queries or the keys of attention heads."""

    block: str  # key of `max_logits`
    role: Part  # "q_rope": rotary queries against a key that all heads share (MLA); "skip": neither
    axis: int = -1  # heads side by side, each with its features; or heads alone, features next
    span: tuple[int, int] | None = None  # entries of this axis, first and one past the last
    features: tuple[int, int] | None = None  # which features of each head; None: all
    group_size: int = 1  # query heads per key head


#: ``{regular expression on paths: where the queries or keys are}``.
QKSpecs: TypeAlias = Mapping[str, QKSpec | Sequence[QKSpec]]
#: The largest logit of each head by block, ``[..., heads]``; its leading axes are the parameter's.
MaxLogits: TypeAlias = Mapping[str, Array]


def qk_clip(
    specs: QKSpecs, *, tau: Number = 100.0, alpha: Number = 0.5
) -> optax.GradientTransformationExtraArgs:
    """Shrinks the query and key projections of heads whose attention logits exceed a limit.

    With ``S_h`` the largest logit of head ``h``, ``g_h = min(1, tau / S_h)``:
    ``W_q <- g_h^alpha W_q`` and ``W_k <- g_h^(1 - alpha) W_k``, after the step. At the same inputs
    all logits of the head then are ``g_h`` times as large. It takes the signed update, so it comes
    last in a chain. Heads without a positive or finite ``S_h`` are not clipped.

    The clip cannot change the logits of a model that normalizes its queries and keys.

    Args:
      specs: ``{regular expression: QKSpec or several}``: which parameters hold queries and keys, by
        their path; the first pattern that matches counts. Include the biases.
        ``QKSpec(block, role)`` describes a parameter ``[..., heads * features]``; ``group_size`` is
        the number of query heads per key head, which are all clipped by their largest logit;
        ``span=(0, 512)`` is the part of a fused kernel; with ``features=(0, 128)`` only these
        features of each head are scaled, as multi-head latent attention requires.
      tau: the limit, > 0, in the unit of the logits; inf never clips.
      alpha: share of the queries, in [0, 1].

    Returns:
      A transformation without state. Its ``update`` needs ``params`` and the extra argument
      ``max_logits``: ``{block: [..., heads]}``, the largest logit of every query head in the whole
      batch, before the softmax. Leading axes are leading axes of the parameter (stacked layers).

    Raises:
      ValueError: a number or a role is not valid; at ``init``, a pattern does not match any
        parameter; at ``update``, ``params`` or ``max_logits`` are missing, or do not fit.

    Source:
      "Kimi K2", 2025 (arXiv 2507.20534), section 2.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import QKSpec, qk_clip
      >>> tx = qk_clip({"query": QKSpec("attention", "q"), "key": QKSpec("attention", "k")})
      >>> params = {"query": jnp.ones((1, 4)), "key": jnp.ones((1, 4))}
      >>> still = {"query": jnp.zeros((1, 4)), "key": jnp.zeros((1, 4))}
      >>> updates, _ = tx.update(
      ...     still, tx.init(params), params, max_logits={"attention": jnp.array([50.0, 400.0])}
      ... )
      >>> updates["query"].tolist()  # two heads, the second times sqrt(100 / 400)
      [[0.0, 0.0, -0.5, -0.5]]
    """
    _check(specs, tau, alpha)

    def init(params: Tree) -> optax.EmptyState:
        _check_every_pattern_is_used(specs, params)
        return optax.EmptyState()

    def update(
        updates: Tree,
        state: State,
        params: Tree = None,
        *,
        max_logits: MaxLogits | None = None,
        **extra: object,
    ) -> tuple[Tree, optax.EmptyState]:
        del extra
        if params is None:
            raise ValueError("qk_clip needs the parameters: call update(updates, state, params)")
        leaves, treedef = jax.tree.flatten(updates)
        weights = treedef.flatten_up_to(params)
        for i, factor in _factors(params, max_logits, specs, tau, alpha).items():
            u = jnp.asarray(leaves[i])
            wide = wide_dtype(u.dtype)
            f, w = factor.astype(jnp.finfo(wide).dtype), jnp.asarray(weights[i]).astype(wide)
            # f (W + U) - W, and exactly U where f is 1
            leaves[i] = (f * u.astype(wide) + (f - 1) * w).astype(u.dtype)
        return treedef.unflatten(leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip_qk(
    params: Tree,
    max_logits: MaxLogits,
    specs: QKSpecs,
    *,
    tau: Number = 100.0,
    alpha: Number = 0.5,
) -> Tree:
    """The parameters with the heads clipped: `qk_clip` as a function, to apply after a step.

    Args:
      params: the parameters after the step.
      max_logits: as for `qk_clip`, of the forward pass before the step.
      specs: as for `qk_clip`.
      tau: as for `qk_clip`.
      alpha: as for `qk_clip`.

    Returns:
      A tree like ``params``, in the same dtypes.

    Raises:
      ValueError: as `qk_clip`.

    Source:
      "Kimi K2", 2025 (arXiv 2507.20534), section 2.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from mimuon_jax import QKSpec, clip_qk
      >>> specs = {"query": QKSpec("attention", "q"), "key": QKSpec("attention", "k")}
      >>> params = {"query": jnp.ones((1, 2)), "key": jnp.ones((1, 2))}
      >>> clipped = clip_qk(params, {"attention": jnp.array([400.0])}, specs)
      >>> clipped["query"].tolist()
      [[0.5, 0.5]]
    """
    _check(specs, tau, alpha)
    _check_every_pattern_is_used(specs, params)
    leaves, treedef = jax.tree.flatten(params)
    for i, factor in _factors(params, max_logits, specs, tau, alpha).items():
        w = jnp.asarray(leaves[i])
        wide = wide_dtype(w.dtype)
        leaves[i] = (factor.astype(jnp.finfo(wide).dtype) * w.astype(wide)).astype(w.dtype)
    return treedef.unflatten(leaves)


def _factors(
    params: Tree, max_logits: MaxLogits | None, specs: QKSpecs, tau: Number, alpha: Number
) -> dict[int, Array]:
    """The factor of every parameter that has one, by position; it broadcasts to the parameter."""
    found: dict[int, Array] = {}
    for position, (path, shape) in enumerate(_arrays(params)):
        pattern = _pattern_of(path, specs)
        for spec in () if pattern is None else _listed(specs[pattern]):
            if spec.role != "skip":
                maxima = _maxima(spec, max_logits)
                factor = _factor(spec, path, shape, _gains(spec, maxima, tau), alpha)
                found[position] = found[position] * factor if position in found else factor
    return found


def _maxima(spec: QKSpec, max_logits: MaxLogits | None) -> Array:
    """The largest logits of a block; raises if they were not given."""
    if not isinstance(max_logits, Mapping):
        raise ValueError(
            f"qk_clip needs max_logits, the largest attention logit of every head: call "
            f"update(..., max_logits={{{spec.block!r}: array of shape [..., heads]}})"
        )
    if spec.block not in max_logits or is_absent(max_logits[spec.block]):
        raise ValueError(
            f"max_logits has nothing for the block {spec.block!r}; it has "
            f"{', '.join(map(repr, max_logits)) or 'no blocks'}"
        )
    maxima = jnp.asarray(max_logits[spec.block])
    if maxima.ndim == 0 or maxima.shape[-1] % spec.group_size:
        raise ValueError(
            f"max_logits[{spec.block!r}] of shape {maxima.shape} must be [..., heads], with a "
            f"number of heads that group_size={spec.group_size} divides"
        )
    return maxima


def _gains(spec: QKSpec, maxima: Array, tau: Number) -> Array:
    """``g_h = min(1, tau / S_h)`` of the heads that the parameter has, in float32."""
    s = maxima.astype(jnp.float32)
    if spec.group_size > 1:
        groups = s.reshape(*s.shape[:-1], -1, spec.group_size).max(-1)
        s = groups if spec.role == "k" else jnp.repeat(groups, spec.group_size, axis=-1)
    clipped = (s > tau) & jnp.isfinite(s)  # of NaN and of negative logits False
    return jnp.where(clipped, tau / jnp.where(clipped, s, 1.0), 1.0)


def _factor(spec: QKSpec, path: str, shape: tuple[int, ...], gains: Array, alpha: Number) -> Array:
    """The factors of one parameter, with as many axes as the parameter."""
    rank, (*batch, heads) = len(shape), gains.shape
    axis = spec.axis % rank if -rank <= spec.axis < rank else rank
    place = f"{spec} does not fit parameter {path!r} of shape {shape}"
    if axis >= rank or len(batch) > axis or tuple(batch) != shape[: len(batch)]:
        raise ValueError(
            f"{place}: max_logits[{spec.block!r}] has the shape {gains.shape} (after grouping), "
            "whose leading axes must be the first axes of the parameter, before that of the heads; "
            "take the maximum over the batch"
        )
    start, stop = spec.span or (0, shape[axis])
    if not 0 <= start < stop <= shape[axis] or (stop - start) % heads:
        raise ValueError(
            f"{place}: entries {start} to {stop} of axis {axis} must be in it, and a multiple of "
            f"the {heads} heads"
        )
    powers = {"q": alpha, "k": 1 - alpha, "q_rope": 1.0}
    size = (stop - start) // heads
    beside = size == 1 and spec.features is not None  # the features have the next axis
    if beside and axis + 1 == rank:
        raise ValueError(f"{place}: axis {axis} holds heads alone, and no axis of features follows")
    count = shape[axis + 1] if beside else size
    first, last = spec.features or (0, count)
    if not 0 <= first < last <= count:
        raise ValueError(f"{place}: a head has {count} features")
    inside = (np.arange(count) >= first) & (np.arange(count) < last)
    f = jnp.where(inside, (gains ** powers[spec.role])[..., None], 1.0)  # [*batch, heads, features]
    f = f if beside else f.reshape(*batch, stop - start, 1)
    around = [(0, 0)] * len(batch) + [(start, shape[axis] - stop), (0, 0)]
    f = jnp.pad(f, around, constant_values=1)
    between = (1,) * (axis - len(batch))
    after = (count,) if beside else (1,) * (axis + 1 < rank)
    return f.reshape(*batch, *between, shape[axis], *after, *(1,) * (rank - axis - 2))


def _listed(spec: QKSpec | Sequence[QKSpec]) -> Sequence[QKSpec]:
    """One or several specs as several."""
    return (spec,) if isinstance(spec, QKSpec) else spec


def _pattern_of(path: str, specs: QKSpecs) -> str | None:
    """The first pattern that matches a path; None if there is none."""
    return next((pattern for pattern in specs if re.search(pattern, path)), None)


def _arrays(params: Tree) -> list[tuple[str, tuple[int, ...]]]:
    """Path and shape of every array, in flattening order."""
    named = [("/".join(names), x) for names, x in named_leaves(params) if not is_absent(x)]
    return [(path, tuple(np.shape(x))) for path, x in named]


def _check(specs: Any, tau: Number, alpha: Number) -> None:
    """Raises unless specs and numbers are valid."""
    check_number("tau", tau, lambda x: x > 0, "> 0, the largest logit; inf never clips")
    check_share("alpha", alpha, "0 scales the keys alone, 1 the queries alone")
    if not isinstance(specs, Mapping) or not specs:
        raise ValueError(
            f"specs={specs!r} does not say where queries and keys are; give "
            '{"query": QKSpec("layers", "q"), "key": QKSpec("layers", "k")}'
        )
    for pattern, given in specs.items():
        for spec in _listed(given):
            if not isinstance(spec, QKSpec) or spec.role not in get_args(Part):
                raise ValueError(
                    f"specs holds {spec!r} for {pattern!r}; use QKSpec(block, role) with the role "
                    f"{', '.join(map(repr, get_args(Part)))}"
                )
            if spec.group_size < 1:
                raise ValueError(f"{spec} of {pattern!r}: group_size must be at least 1")


def _check_every_pattern_is_used(specs: QKSpecs, params: Tree) -> None:
    """Raises if a pattern does not match any parameter; not checked if some are masked."""
    paths = [path for path, _ in _arrays(params)]
    unused = set(specs) - {_pattern_of(path, specs) for path in paths}
    if unused and paths and not is_masked(params):
        raise ValueError(
            f"specs: {min(unused)!r} does not match any parameter, or only parameters that an "
            f"earlier pattern matches; the parameters are {', '.join(paths)}"
        )
