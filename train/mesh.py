"""The device mesh, and ordered rules for the sharding of arrays on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding

from train.errors import BadInput, require
from train.rules import first_matches, path_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # a batch is sharded over these

Rules = Sequence[tuple[str, P]]  # ordered (regular expression, sharding)


def make_mesh(spec: str, *, explicit: bool = False, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds a mesh from `AXIS=SIZE,...` over the devices of all processes.

    Args:
        spec: comma-separated axes with their sizes; one size may be -1, for all remaining devices.
            Axes that are not named have size 1.
        explicit: True: shardings are part of the types of arrays. False: the compiler chooses
            shardings that no rule fixes.
        devices: the devices to use, in order; None: all.

    Returns:
        A mesh with the axes `data`, `fsdp` and `tensor`.

    Raises:
        BadInput: an unknown axis, a size that is not a number, or one that does not fit the
            devices.

    Example:
        >>> dict(make_mesh("fsdp=2,tensor=2").shape)
        {'data': 1, 'fsdp': 2, 'tensor': 2}
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(spec, len(devices))
    count = math.prod(sizes.values())
    require(
        count <= len(devices),
        f"mesh={spec!r} needs {count} devices and there are {len(devices)}; use a smaller size, or "
        "-1 for all that are left",
    )
    processes = len({device.process_index for device in devices})
    require(
        processes == 1 or count == len(devices),
        f"mesh={spec!r} uses {count} of {len(devices)} devices, but {processes} processes must use "
        "all of theirs; use a larger axis, or the size -1 for one of them",
    )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(kind,) * len(sizes),
        devices=list(devices[:count]),
    )
    _check_processes(spec, mesh, processes)
    return mesh


def automatic(mesh: Any) -> Mesh:
    """The mesh with axes of type `Auto`, for which models, losses and evaluations are written."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def on_automatic_axes(tree: Any) -> Any:
    """The same arrays, or shardings, on Auto axes, without a copy. Others are left as they are."""

    def relabel(x: Any) -> Any:
        sharding = x if isinstance(x, NamedSharding) else getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return x
        new = NamedSharding(automatic(sharding.mesh), sharding.spec)
        return new if x is sharding else jax.device_put(x, new)

    return jax.tree.map(relabel, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis over the mesh axes `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises `BadInput` unless all devices have the same number of rows of every micro-batch."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = devices * micro_batches
    below = batch_size // parts * parts
    choices = " or ".join(f"{size}" for size in (below, below + parts) if size)
    several = f", times micro_batches={micro_batches}" if micro_batches > 1 else ""
    require(
        batch_size % parts == 0,
        f"batch_size={batch_size} is not divisible by the {devices} devices of the mesh's data and "
        f"fsdp axes{several}; use {choices}, or a smaller mesh such as --mesh data=1",
    )


def tree_shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Shards every array of a tree by the first rule whose pattern matches its whole path.

    Args:
        tree: pytree of arrays or `jax.ShapeDtypeStruct`; a path reads `layers/mlp/up`.
        rules: ordered (regular expression, `jax.P`); end with `(".*", P())` to
            replicate all other arrays.
        mesh: the mesh whose axes the specs name.

    Returns:
        A tree of `NamedSharding` of the same structure.

    Raises:
        ValueError: a path that no rule covers, a rule that is never the first match, or a spec
            that does not fit a shape. The message names the paths.

    Example:
        >>> mesh = make_mesh("data=1")
        >>> rules = [("embed", P("data")), (".*", P())]
        >>> arrays = {"embed": jax.numpy.ones((4, 2)), "bias": jax.numpy.ones(2)}
        >>> tree_shardings(arrays, rules, mesh)["embed"].spec == P("data")
        True
    """
    specs = first_matches(tree, rules, kind="sharding")

    def layout(path: tuple[Any, ...], leaf: Any, spec: P) -> NamedSharding:
        sharding = NamedSharding(mesh, spec)
        _check_fits(path_of(path), leaf.shape, sharding)
        return sharding

    return jax.tree_util.tree_map_with_path(layout, tree, specs)


def following_shardings(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shards an optimizer's state: each array like the parameter that it belongs to.

    An array belongs to a parameter if its path ends with the parameter's path and the shapes are
    equal (momenta, second moments). All others, such as counters, are replicated. Without this the
    compiler would leave the zeros of `init` on one device.

    Args:
        tree: the state, as arrays or `jax.ShapeDtypeStruct`.
        params: the parameters, likewise.
        shardings: the shardings of the parameters, a tree of the same structure.
        mesh: the mesh to replicate on.

    Returns:
        A tree of `NamedSharding` of the state's structure.
    """
    layouts = {
        (path, leaf.shape): sharding
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
        )
    }

    def layout(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        suffixes = ((path[i:], leaf.shape) for i in range(len(path)))
        return next((layouts[s] for s in suffixes if s in layouts), NamedSharding(mesh, P()))

    return jax.tree_util.tree_map_with_path(layout, tree)


def _check_fits(path: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    """Raises unless a sharding fits the shape of an array."""
    sizes = [*shape, *(1 for _ in sharding.spec[len(shape) :])]  # extra axes have size 1
    for size, axes in zip(sizes, sharding.spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes is not None else ()
        devices = math.prod(sharding.mesh.shape[name] for name in names)
        if size % devices:
            raise ValueError(
                f"{path} of shape {shape} cannot be sharded by {sharding.spec}: {size} is not "
                f"divisible by {devices} devices"
            )


def _sizes(spec: str, devices: int) -> dict[str, int]:
    """Parses `AXIS=SIZE,...`; axes that are not named have size 1."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        known = ", ".join(AXES)
        require(axis in AXES, f"mesh={spec!r}: axis {axis!r} is unknown; the axes are {known}")
        require(axis not in sizes, f"mesh={spec!r}: axis {axis!r} is given twice")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise BadInput(f"mesh={spec!r}: {size!r} is not a whole number; write data=4") from None
        require(
            sizes[axis] >= 1 or sizes[axis] == -1,
            f"mesh={spec!r}: a size must be at least 1, or -1 for all remaining devices",
        )
    free = [axis for axis, size in sizes.items() if size == -1]
    require(len(free) <= 1, f"mesh={spec!r}: only one axis can have the size -1")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    return {axis: max(devices // fixed, 1) if axis in free else sizes.get(axis, 1) for axis in AXES}


def _check_processes(spec: str, mesh: Mesh, processes: int) -> None:
    """Raises unless every process has its own rows of a batch."""
    batch = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = mesh.devices.reshape(batch, -1)
    apart = all(len({device.process_index for device in row}) == 1 for row in rows)
    require(
        processes == 1 or apart,
        f"mesh={spec!r}: the axis tensor spans several processes, but each process must have its "
        "own rows of a batch; use a size of tensor that divides the devices per process",
    )
