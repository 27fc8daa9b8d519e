"""Parameter trees of real models, as shapes, and how they are sharded over eight devices."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

Shapes = dict[str, tuple[int, ...]]


class Qwen3(NamedTuple):
    """Sizes of a decoder's matrices; each head has width 128."""

    layers: int
    hidden: int
    inner: int
    heads: int
    shared_heads: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """`[reduction, output]` of each matrix of one layer."""
        queries, keys = 128 * self.heads, 128 * self.shared_heads
        return {
            "query": (self.hidden, queries),
            "key": (self.hidden, keys),
            "value": (self.hidden, keys),
            "out": (queries, self.hidden),
            "gate": (self.hidden, self.inner),
            "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }

    def shapes(self, *, scanned: bool) -> Shapes:
        """One leaf per matrix or, if scanned, one leaf for that matrix of all layers."""
        if scanned:
            return {name: (self.layers, *shape) for name, shape in self.matrices().items()}
        return {
            f"{i:02d}_{name}": shape
            for i in range(self.layers)
            for name, shape in self.matrices().items()
        }


QWEN3 = {
    "0.6b": Qwen3(layers=28, hidden=1024, inner=3072, heads=16, shared_heads=8),
    "8b": Qwen3(layers=36, hidden=4096, inner=12288, heads=32, shared_heads=8),
}


class Layout(NamedTuple):
    """A mesh, and how each leaf is sharded over it."""

    mesh: dict[str, int]
    scanned: bool
    spec: Callable[
        [str], tuple[str | None, ...]
    ]  # leaf name -> mesh axes of the two axes of a matrix
    batch: str | None = None  # mesh axis that shards the layers


def _two_dimensional(name: str) -> tuple[str, str]:
    """The usual tensor parallelism: column-parallel, then row-parallel."""
    row_parallel = name.endswith(("out", "down"))
    return ("tensor", "fsdp") if row_parallel else ("fsdp", "tensor")


LAYOUTS = {
    "fsdp": Layout({"fsdp": 8}, False, lambda name: ("fsdp", None)),
    "2d": Layout({"fsdp": 4, "tensor": 2}, False, _two_dimensional),
    "replicated": Layout({"data": 8}, False, lambda name: (None, None)),
    "hybrid": Layout({"data": 2, "fsdp": 4}, False, lambda name: ("fsdp", None)),
    "scanned fsdp": Layout({"fsdp": 8}, True, lambda name: ("fsdp", None)),
    "scanned 2d": Layout({"fsdp": 4, "tensor": 2}, True, _two_dimensional),
    # 4 divides 28 and 36 layers, 8 does not
    "layers": Layout({"stage": 4}, True, lambda name: (None, None), batch="stage"),
}


def abstract(
    shapes: Shapes,
    layout: Layout,
    kind: AxisType,
    dtype: jnp.dtype = jnp.float32,
    devices: Sequence[Any] | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves as shapes with shardings, on the given devices or on those of this machine."""
    devices = jax.devices() if devices is None else devices
    if not layout.mesh:
        alone = SingleDeviceSharding(devices[0])
        return {n: jax.ShapeDtypeStruct(s, dtype, sharding=alone) for n, s in shapes.items()}
    sizes = tuple(layout.mesh.values())
    # The devices in their order: `jax.make_mesh` may change it, and not on every platform.
    grid = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    mesh = Mesh(grid, tuple(layout.mesh), axis_types=(kind,) * len(sizes))
    leaves = {}
    for name, shape in shapes.items():
        spec = P(*[layout.batch] * (len(shape) - 2), *layout.spec(name))
        leaves[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    return leaves


def dimension_numbers(shapes: Shapes) -> dict[str, MuonDimensionNumbers]:
    """The last two axes are the matrix; kernels `[h, w, in, out]` are `[h w in, out]`."""
    return {
        name: MuonDimensionNumbers((0, 1, 2), 3)
        if len(shape) == 4
        else MuonDimensionNumbers(len(shape) - 2, len(shape) - 1)
        for name, shape in shapes.items()
    }


def ideal_flops(shapes: Shapes, steps: int) -> float:
    """`steps (4 m^2 n + 2 m^3)`, summed over all matrices: the standard iteration alone."""
    total = 0.0
    for shape in shapes.values():
        m, n = sorted((math.prod(shape[:-1]), shape[-1]) if len(shape) == 4 else shape[-2:])
        count = math.prod(shape[:-2]) if len(shape) != 4 else 1
        total += count * steps * (4.0 * m * m * n + 2.0 * m**3)
    return total
