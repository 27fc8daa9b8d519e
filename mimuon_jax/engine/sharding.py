"""How arrays are sharded, and the ways to run one program on every device of a mesh.

Explicit mesh axes are read from the types of the arrays, and outside jit all axes from the arrays
themselves. For Auto axes under jit the caller may provide the shardings; otherwise they are unknown
until XLA compiles, see `stacks`.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mimuon_jax.types import Shardings, Tree

#: For every axis of an array the mesh axes that shard it, slowest first.
Spec: TypeAlias = tuple[tuple[str, ...], ...]

#: ``(specs, sizes of the mesh axes) -> f``, where ``f`` takes one device's shards of all operands.
Program: TypeAlias = Callable[[Sequence[Spec], Mapping[str, int]], Callable[..., tuple[Array, ...]]]

Sharding: TypeAlias = NamedSharding | PartitionSpec | None
AnyMesh: TypeAlias = Mesh | AbstractMesh

_FREE = (AxisType.Auto, AxisType.Explicit)


def distribute(
    program: Program,
    arrays: Sequence[Array],
    flags: Sequence[Array],
    batch_axes: Sequence[tuple[int, ...]],
    shardings: Sequence[Sharding] | None,
    *,
    elsewhere: Sequence[str] = (),
) -> tuple[Array, ...]:
    """Runs a program on every device of the mesh of the arrays.

    Args:
      program: given how the arrays are sharded, returns a function from one device's shards of the
        arrays and flags to its shards of the results. Mesh axes of size 1 are left out.
      arrays: the results have their shapes and shardings.
      flags: none, or one per array, shaped like its batch axes.
      batch_axes: the batch axes of each array.
      shardings: one per array (None: replicated), or None if nothing is known. A wrong one costs
        time, never correctness. Explicit axes need none.
      elsewhere: mesh axes with other arrays on each device, of a `jax.vmap` around this.

    Returns:
      The results. Without a mesh, those of the program on whole arrays.

    Raises:
      ValueError: there are shardings but no mesh, or they do not fit the mesh or the arrays.
    """
    mesh = _mesh(arrays, shardings)
    manual = _sizes(mesh, (AxisType.Manual,))
    alone = math.prod(_sizes(mesh, _FREE).values()) == 1
    if alone and manual and shardings is not None:
        # Inside the caller's shard_map, and the caller states how its arrays are sharded.
        specs = [_spec(s, x.ndim, manual) for s, x in zip(shardings, arrays, strict=True)]
        return _on_one_device(program, specs, manual)(*arrays, *flags)
    # An Explicit mesh of one device needs shard_map too: outside it, some reshapes are refused.
    mapped = not alone or bool(_sizes(mesh, (AxisType.Explicit,)))
    specs = _specs(arrays, shardings, mesh) if mapped else None
    if specs is not None:
        return _by_shard_map(program, arrays, flags, batch_axes, specs, mesh, elsewhere)
    return program([((),) * x.ndim for x in arrays], {})(*arrays, *flags)


def unknown_axes(
    arrays: Sequence[Array], shardings: Sequence[Sharding] | None
) -> tuple[AnyMesh, dict[str, int]]:
    """The mesh of the arrays, and its axes that may shard them in a way that nobody knows."""
    mesh = _mesh(arrays, shardings)
    manual = _sizes(mesh, (AxisType.Manual,))
    if not _traced(arrays) or manual or _specs(arrays, shardings, mesh) is not None:
        return mesh, {}
    return mesh, {axis: size for axis, size in _sizes(mesh, _FREE).items() if size > 1}


def auto_axes(mesh: AnyMesh) -> dict[str, int]:
    """The sizes of the Auto axes of a mesh."""
    return _sizes(mesh, (AxisType.Auto,))


def is_distributed(arrays: Sequence[Array], shardings: Sequence[Sharding] | None) -> bool:
    """Whether several devices share the work, under `jax.vmap` those of one model."""
    several = math.prod(_sizes(_mesh(arrays, shardings), _FREE).values()) > 1
    return several and _traced(arrays)


def _traced(arrays: Sequence[Array]) -> bool:
    """Whether the arrays are being traced."""
    return any(isinstance(x, Tracer) for x in arrays)


def _mapped_away(mesh: AnyMesh) -> set[str]:
    """The Explicit axes over which a `jax.vmap` around this maps: `jax.shard_map` refuses them."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = [axis for axis, kind in kinds if kind == AxisType.Explicit]
    return set() if _mappable(mesh, explicit) else {a for a in explicit if not _mappable(mesh, [a])}


def _mappable(mesh: AnyMesh, axes: Sequence[str]) -> bool:
    """Whether `jax.shard_map` accepts the axes here."""
    nothing = jax.shard_map(
        lambda: (), mesh=mesh, axis_names=set(axes), in_specs=(), out_specs=PartitionSpec()
    )
    try:
        jax.eval_shape(nothing)
    except ValueError:
        return False
    return True


def of_leaves(shardings: Shardings, tree: Tree, chosen: Iterable[int]) -> list[Sharding] | None:
    """The shardings of some leaves of a tree.

    Args:
      shardings: a tree, a prefix tree or a function ``tree -> tree``, with leaves NamedSharding,
        PartitionSpec or None (replicated); or None if nothing is known.
      tree: the arrays.
      chosen: which leaves, in flattening order.

    Returns:
      One sharding per chosen leaf, or None if nothing is known.

    Raises:
      ValueError: a chosen leaf has no entry.
    """
    if shardings is None:
        return None
    given = shardings(tree) if callable(shardings) else shardings
    is_entry = lambda x: x is None or isinstance(x, (PartitionSpec, NamedSharding))  # noqa: E731
    entries = dict(jax.tree_util.tree_flatten_with_path(given, is_leaf=is_entry)[0])
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    found = []
    for path in (paths[i] for i in chosen):
        prefixes = [path[:i] for i in range(len(path), -1, -1) if path[:i] in entries]
        if not prefixes:
            raise ValueError(
                f"`shardings` has no entry for parameter {jax.tree_util.keystr(path)}; give a "
                "NamedSharding, a PartitionSpec, or None for a replicated one"
            )
        found.append(entries[prefixes[0]])
    return found


def _by_shard_map(
    program: Program,
    arrays: Sequence[Array],
    flags: Sequence[Array],
    batch_axes: Sequence[tuple[int, ...]],
    specs: Sequence[Spec],
    mesh: AnyMesh,
    elsewhere: Sequence[str],
) -> tuple[Array, ...]:
    """Runs the program where the shardings are known while tracing."""
    free = _sizes(mesh, _FREE)
    inputs = _partition_specs(specs, batch_axes if flags else ())
    outputs = inputs[: len(arrays)]
    explicit = _sizes(mesh, (AxisType.Explicit,))
    if explicit:  # shard_map refuses an Explicit array that is sharded otherwise; flags may be
        targets = [NamedSharding(mesh, _only(spec, explicit)) for spec in inputs[len(arrays) :]]
        flags = [jax.sharding.reshard(x, s) for x, s in zip(flags, targets, strict=True)]
    shared = {axis: size for axis, size in free.items() if axis not in elsewhere}
    run = jax.shard_map(
        _on_one_device(program, specs, shared),
        mesh=mesh,
        axis_names=set(free),
        in_specs=inputs,
        out_specs=outputs,
        check_vma=False,
    )
    return run(*arrays, *flags)


def _on_one_device(
    program: Program, specs: Sequence[Spec], sizes: Mapping[str, int]
) -> Callable[..., tuple[Array, ...]]:
    """The program without mesh axes of size 1, which would only add empty collectives."""
    large = {axis: size for axis, size in sizes.items() if size > 1}
    specs = [tuple(tuple(a for a in axes if a in large) for axes in spec) for spec in specs]
    return program(specs, large)


def _mesh(arrays: Sequence[Array], shardings: Sequence[object] | None) -> AnyMesh:
    """The mesh of the arrays, else of the shardings, else of the context; it may be empty."""
    candidates = [
        *(_placed(x).mesh for x in arrays if _placed(x)),
        *(jax.typeof(x).sharding.mesh for x in arrays),
        *(s.mesh for s in shardings or () if isinstance(s, NamedSharding)),
    ]
    return next((mesh for mesh in candidates if not mesh.empty), jax.sharding.get_abstract_mesh())


def _placed(x: Array) -> Any:
    """The sharding of a concrete array on a mesh, else None."""
    known = not isinstance(x, Tracer) and isinstance(x.sharding, NamedSharding)
    return x.sharding if known else None


def _sizes(mesh: AnyMesh, types: Sequence[AxisType]) -> dict[str, int]:
    """Sizes of the axes of the given types, in the order of the mesh."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    taken = _mapped_away(mesh) if AxisType.Explicit in types else ()
    return {a: mesh.shape[a] for a, kind in kinds if kind in types and a not in taken}


def _specs(
    arrays: Sequence[Array], shardings: Sequence[Sharding] | None, mesh: AnyMesh
) -> list[Spec] | None:
    """How all axes that are not manual shard the arrays, or None if only XLA will know."""
    free, explicit = _sizes(mesh, _FREE), _sizes(mesh, (AxisType.Explicit,))
    auto = auto_axes(mesh)
    if shardings is None and not explicit and not all(_placed(x) for x in arrays):
        return None
    specs = []
    for x, given in zip(arrays, shardings or [None] * len(arrays), strict=True):
        typed = _spec(jax.typeof(x).sharding, x.ndim, explicit)
        other = _spec(_placed(x) or given, x.ndim, auto)
        spec = tuple(map(operator.add, typed, other))
        specs.append(_divisible(spec, x.shape, free))
    return specs


def _spec(sharding: object, rank: int, sizes: Mapping[str, int]) -> Spec:
    """The mesh axes among ``sizes`` that shard each axis of an array."""
    return tuple(tuple(a for a in axes if a in sizes) for axes in _entries(sharding, rank))


def _entries(sharding: Any, rank: int) -> list[tuple[str, ...]]:
    """A partition spec with one tuple per axis; of an unknown sharding, all of them empty."""
    spec = getattr(sharding, "spec", sharding)
    entries = list(spec) if isinstance(spec, PartitionSpec) else []
    entries += [None] * (rank - len(entries))
    as_tuple = lambda entry: (entry,) if isinstance(entry, str) else ()  # noqa: E731
    return [entry if isinstance(entry, tuple) else as_tuple(entry) for entry in entries]


def _divisible(spec: Spec, shape: Sequence[int], sizes: Mapping[str, int]) -> Spec:
    """The spec without mesh axes whose sizes do not divide the axis of the array."""
    kept = []
    for axes, size in zip(spec, shape, strict=True):
        while size % math.prod(sizes[axis] for axis in axes):
            axes = axes[:-1]
        kept.append(axes)
    return tuple(kept)


def _partition_specs(
    specs: Sequence[Spec], batch_axes: Sequence[tuple[int, ...]]
) -> tuple[PartitionSpec, ...]:
    """The specs of the arrays, and of the flags, which are sharded like the batch axes."""
    flags = [tuple(spec[i] for i in axes) for spec, axes in zip(specs, batch_axes, strict=False)]
    return tuple(PartitionSpec(*(axes or None for axes in spec)) for spec in [*specs, *flags])


def _only(spec: PartitionSpec, sizes: Mapping[str, int]) -> PartitionSpec:
    """The spec without mesh axes that are not among ``sizes``."""
    return PartitionSpec(*(axes or None for axes in _spec(spec, len(spec), sizes)))


def check_shardings(arrays: Sequence[Array], shardings: Sequence[Any]) -> None:
    """Raises ``ValueError`` if a sharding does not fit the mesh or its array."""
    mesh = _mesh(arrays, shardings)
    if len(shardings) != len(arrays):
        raise ValueError(f"{len(shardings)} shardings for {len(arrays)} arrays; give one per array")
    for x, sharding in zip(arrays, shardings, strict=True):
        if sharding is None:
            continue
        described = f"sharding {sharding} of an array of shape {x.shape}"
        spec = getattr(sharding, "spec", sharding)
        if not isinstance(spec, PartitionSpec) or len(spec) > x.ndim:
            raise ValueError(
                f"{described} must be a NamedSharding or a PartitionSpec with at most {x.ndim} "
                "entries"
            )
        if mesh.empty:
            raise ValueError(
                f"{described} has no mesh, and neither the array nor the context has one; give "
                "NamedSharding(mesh, spec), or call this under jax.set_mesh(mesh)"
            )
        names = list(itertools.chain(*_entries(spec, x.ndim)))
        unknown = [axis for axis in names if axis not in mesh.axis_names]
        if unknown or len(set(names)) < len(names):
            raise ValueError(
                f"{described} must name axes of the mesh, {', '.join(map(repr, mesh.axis_names))}, "
                "each at most once"
            )
