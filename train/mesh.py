"""The device mesh, and ordered rules that say how arrays are laid out on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding

from train.errors import BadInput, require
from train.rules import first_matches

AXES = ("data",)

Rules = Sequence[tuple[str, P]]  # ordered (regular expression, layout)


def make_mesh(spec: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds a mesh over the local devices from `AXIS=SIZE`.

    Args:
        spec: comma-separated axes with their sizes; -1, at most once, takes the devices that are
            left.
        devices: the devices to use, in order; None: all local ones.

    Returns:
        A mesh whose axes are all of type `Auto`: the compiler lays out what no rule says.

    Raises:
        BadInput: an unknown axis, a size that is no number, or more devices than there are.

    Example:
        >>> make_mesh("data=1").shape["data"]
        1
    """
    devices = jax.local_devices() if devices is None else devices
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        require(axis in AXES, f"mesh={spec!r}: axis {axis!r} is unknown; use {' or '.join(AXES)}")
        require(axis not in sizes, f"mesh={spec!r}: axis {axis!r} is given twice")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise BadInput(f"mesh={spec!r}: {size!r} is no whole number; write data=4") from None
        require(
            sizes[axis] >= 1 or sizes[axis] == -1,
            f"mesh={spec!r}: a size must be at least 1, or -1 for all devices that are left",
        )
    fixed = 1
    for size in sizes.values():
        fixed *= max(size, 1)
    free = [axis for axis, size in sizes.items() if size == -1]
    require(len(free) <= 1, f"mesh={spec!r}: only one axis can take the devices that are left")
    if free:
        sizes[free[0]] = max(len(devices) // fixed, 1)
        fixed *= sizes[free[0]]
    require(
        fixed <= len(devices),
        f"mesh={spec!r} needs {fixed} devices and this machine has {len(devices)}",
    )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=list(devices[:fixed]),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: its leading axis split over the data axis."""
    return NamedSharding(mesh, P("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises `BadInput` unless the data axis divides the batch."""
    devices = mesh.shape["data"]
    below = batch_size // devices * devices
    choices = " or ".join(f"{size}" for size in (below, below + devices) if size)
    require(
        batch_size % devices == 0,
        f"batch_size={batch_size} is not divisible by the {devices} devices of the mesh's data "
        f"axis; use {choices}, or a smaller mesh such as --mesh data=1",
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
        _check_fits(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, sharding)
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
