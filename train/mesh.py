"""The device mesh, and ordered rules that say how arrays are laid out on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding

from train.errors import BadInput, require
from train.rules import first_matches, path_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # those that a batch is split over

Rules = Sequence[tuple[str, P]]  # ordered (regular expression, layout)


def make_mesh(spec: str, *, explicit: bool = False, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds a mesh from `AXIS=SIZE,...` over the devices of all processes.

    Args:
        spec: comma-separated axes with their sizes; -1, at most once, takes the devices that are
            left. Axes that are not named have size 1.
        explicit: shardings become a part of the types of arrays; otherwise the compiler lays out
            what no rule says.
        devices: the devices to use, in order; None: all.

    Returns:
        A mesh of the axes `data`, `fsdp` and `tensor`.

    Raises:
        BadInput: an unknown axis, a size that is no number, or one that does not fit the devices.

    Example:
        >>> dict(make_mesh("fsdp=2,tensor=2").shape)
        {'data': 1, 'fsdp': 2, 'tensor': 2}
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(spec, len(devices))
    count = math.prod(sizes.values())
    require(
        count <= len(devices),
        f"mesh={spec!r} needs {count} devices and there are {len(devices)}; make an axis smaller",
    )
    processes = len({device.process_index for device in devices})
    require(
        processes == 1 or count == len(devices),
        f"mesh={spec!r} takes {count} of {len(devices)} devices, but {processes} processes need "
        "all of theirs; make an axis larger, or give one of them the size -1",
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
    """The mesh with axes of type `Auto`, as models, losses and evaluations are written for."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def on_automatic_axes(tree: Any) -> Any:
    """The same arrays, or shardings, on Auto axes; nothing is copied. What is on no mesh stays."""

    def relabel(x: Any) -> Any:
        sharding = x if isinstance(x, NamedSharding) else getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return x
        new = NamedSharding(automatic(sharding.mesh), sharding.spec)
        return new if x is sharding else jax.device_put(x, new)

    return jax.tree.map(relabel, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: its leading axis split over the axes `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises `BadInput` unless every device has equally many rows of every micro-batch."""
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
    """Lays out every array of a tree by the first rule whose pattern matches its whole path.

    Args:
        tree: pytree of arrays or `jax.ShapeDtypeStruct`; a path reads `layers/mlp/up`.
        rules: ordered (regular expression, `jax.P`); end with `(".*", P())` to
            replicate the rest.
        mesh: the mesh that the specs name the axes of.

    Returns:
        A tree of `NamedSharding` of the same structure.

    Raises:
        ValueError: a path that no rule covers, a rule that is the first match of no path, or a
            spec that does not fit a shape; with the paths.

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
    """Lays out an optimizer's state: each array as the parameter that it belongs to.

    An array belongs to the parameter whose path ends its own and whose shape it has (momenta,
    second moments); all others, such as counters, are replicated. Said explicitly, since `init`
    makes zeros, which the compiler would leave on one device.

    Args:
        tree: the state, as arrays or `jax.ShapeDtypeStruct`.
        params: the parameters, likewise.
        shardings: the parameters' layout, a tree of the same structure.
        mesh: where to replicate.

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
    """Raises if an array cannot be laid out so."""
    sizes = [*shape, *(1 for _ in sharding.spec[len(shape) :])]  # an axis too many splits nothing
    for size, axes in zip(sizes, sharding.spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes is not None else ()
        devices = math.prod(sharding.mesh.shape[name] for name in names)
        if size % devices:
            raise ValueError(
                f"{path} of shape {shape} cannot be laid out by {sharding.spec}: {devices} devices "
                f"do not divide {size}"
            )


def _sizes(spec: str, devices: int) -> dict[str, int]:
    """Reads `AXIS=SIZE,...`; axes that are not named have size 1."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        known = ", ".join(AXES)
        require(axis in AXES, f"mesh={spec!r}: axis {axis!r} is unknown; the axes are {known}")
        require(axis not in sizes, f"mesh={spec!r}: axis {axis!r} is given twice")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise BadInput(f"mesh={spec!r}: {size!r} is no whole number; write data=4") from None
        require(
            sizes[axis] >= 1 or sizes[axis] == -1,
            f"mesh={spec!r}: a size must be at least 1, or -1 for all devices that are left",
        )
    free = [axis for axis, size in sizes.items() if size == -1]
    require(len(free) <= 1, f"mesh={spec!r}: only one axis can take the devices that are left")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    return {axis: max(devices // fixed, 1) if axis in free else sizes.get(axis, 1) for axis in AXES}


def _check_processes(spec: str, mesh: Mesh, processes: int) -> None:
    """Raises unless every process has rows of a batch that no other process has."""
    batch = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = mesh.devices.reshape(batch, -1)
    apart = all(len({device.process_index for device in row}) == 1 for row in rows)
    require(
        processes == 1 or apart,
        f"mesh={spec!r}: the axis tensor reaches from one process to another, and each has to read "
        "other examples than the rest; make tensor a divisor of a process's devices",
    )
