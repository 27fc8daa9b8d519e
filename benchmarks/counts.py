"""Collectives, bytes, FLOPs, compile seconds and memory of one compiled optimizer step."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from benchmarks.hlo import work, written_products
from benchmarks.maxtext import maxtext_muon
from benchmarks.targets import compiler_options, devices, platform
from benchmarks.workloads import LAYOUTS, QWEN3, Layout, abstract, dimension_numbers, ideal_flops
from mimuon_jax import muon

STEPS = 5  # Jordan's schedule, the default of optax.contrib.muon: both compute the same polynomial
#: How the optimizer learns the shardings: from the arrays' types, as an argument, from an `init`
#: outside jit, or not at all.
ENTRIES = ("explicit", "handed over", "seen", "auto")
NO_MESH = Layout({}, False, lambda name: (None, None))  # "none"
Tree = dict[str, jax.ShapeDtypeStruct]


class Row(NamedTuple):
    """One compiled step; all counts are per device."""

    model: str
    layers: int
    layout: str
    dtype: str
    implementation: str
    entry: str
    collectives: float = math.nan
    looped: float = math.nan  # of these, inside a loop
    received: float = math.nan  # MB that come out of collectives
    carried: str = ""  # dtypes of these
    gflop: float = math.nan  # of matrix products
    ideal: float = math.nan  # gflop over an equal share of the standard iteration's GFLOP
    products: float = math.nan  # matrix products written in the program; one in a loop counts once
    executed: float = math.nan  # matrix products; a CPU computes large matrices one by one
    seconds: float = math.nan  # to lower and compile
    temporaries: float = math.nan  # MB in addition to arguments and results
    program: float = math.nan  # MB
    operands: str = ""  # dtypes of the factors of the products
    target: str = "cpu"
    failed: str = ""  # the type of the error, if there was one


def ours(leaves: Tree, entry: str) -> optax.GradientTransformation:
    """Our Muon, with the baseline's polynomial."""
    shardings = {name: leaf.sharding for name, leaf in leaves.items()}
    tx = muon(
        0.02,
        orthogonalizer="jordan",
        matrices=dimension_numbers({name: leaf.shape for name, leaf in leaves.items()}),
        shardings=shardings if entry == "handed over" else None,
    )
    if entry == "seen":
        shown = cast(Any, leaves)
        jax.eval_shape(lambda: tx.init(shown))  # what is not an argument is not traced
    return tx


def optax_muon(leaves: Tree, entry: str) -> optax.GradientTransformation:
    """The baseline."""
    del entry
    by_name = dimension_numbers({name: leaf.shape for name, leaf in leaves.items()})
    return optax.contrib.muon(0.02, muon_weight_dimension_numbers=by_name)


def measure(
    model: str,
    layout: str,
    dtype: str = "float32",
    entry: str = "auto",
    layers: int | None = None,
    make: Callable[[Tree, str], optax.GradientTransformation] = ours,
    target: str = "cpu",
) -> Row:
    """Lowers and compiles one step, and counts what the compiled program does.

    Args:
        model: a key of `QWEN3`.
        layout: a key of `LAYOUTS`, or "none" for one device without a mesh.
        dtype: of parameters, gradients and momentum.
        entry: one of `ENTRIES`.
        layers: None: all of the model's.
        make: `ours`, `optax_muon` or `maxtext_muon`.
        target: the devices to compile for, see `benchmarks.targets`.
    """
    config = QWEN3[model] if layers is None else QWEN3[model]._replace(layers=layers)
    where = LAYOUTS.get(layout, NO_MESH)
    shapes = config.shapes(scanned=where.scanned)
    kind = AxisType.Explicit if entry == "explicit" else AxisType.Auto
    leaves = abstract(shapes, where, kind, jnp.dtype(dtype), devices(target))
    name = "optax" if make is optax_muon else "mimuon_jax"
    name = "maxtext" if make is maxtext_muon else name
    row = Row(model, config.layers, layout, dtype, name, entry, target=target)
    tx = make(leaves, entry)
    start = time.perf_counter()
    try:
        compiled = lower(tx, leaves, platform(target)).compile(dict(compiler_options(target)))
    except Exception as error:  # whatever a baseline raises is a result
        return row._replace(failed=type(error).__name__)
    seconds = time.perf_counter() - start
    text = compiled.as_text() or ""
    done = work(text)
    memory = compiled.memory_analysis()
    share = ideal_flops(shapes, STEPS) / math.prod(where.mesh.values())
    return row._replace(
        collectives=done.collectives.total(),
        looped=done.looped,
        received=done.received / 1e6,
        carried=" ".join(sorted(done.carried)),
        gflop=done.flops / 1e9,
        ideal=done.flops / share,
        products=written_products(text),
        executed=done.products,
        seconds=seconds,
        temporaries=memory.temp_size_in_bytes / 1e6 if memory else math.nan,
        program=memory.generated_code_size_in_bytes / 1e6 if memory else math.nan,
        operands=" ".join(sorted(done.operands)),
    )


def lower(
    tx: optax.GradientTransformation, leaves: Tree, platform: str = "cpu"
) -> jax.stages.Lowered:
    """Lowers one update; gradients and momentum are donated, and sharded like their parameters."""

    def like_its_parameter(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        parameter = leaves.get(getattr(path[-1], "key", "")) if path else None
        if parameter is None or parameter.shape != x.shape:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parameter.sharding)

    state = jax.tree_util.tree_map_with_path(like_its_parameter, jax.eval_shape(tx.init, leaves))
    step = jax.jit(lambda g, s, p: tx.update(g, s, p), donate_argnums=(0, 1))
    return step.trace(leaves, state, leaves).lower(lowering_platforms=(platform,))


def rows(
    model: str = "0.6b",
    layers: int | None = None,
    dtype: str = "float32",
    baseline: bool = True,
    target: str = "cpu",
) -> Iterator[Row]:
    """Ours in all layouts and entries, then the baselines."""
    for layout in LAYOUTS:
        for entry in ENTRIES:
            yield measure(model, layout, dtype, entry, layers, target=target)
    yield measure(model, "none", dtype, "auto", layers, target=target)
    if baseline:
        for layout in ("scanned fsdp", "scanned 2d"):  # it exchanges stacked layers alone
            yield measure(model, layout, dtype, "handed over", layers, maxtext_muon, target)
        yield measure(model, "fsdp", dtype, "explicit", layers, optax_muon, target)
        for layout in [*LAYOUTS, "none"]:
            yield measure(model, layout, dtype, "auto", layers, optax_muon, target)
