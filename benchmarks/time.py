"""Wall-clock time of one optimizer step and of its baselines, alternating in one process."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.isolated import Part, guarded
from benchmarks.profile import kernels
from benchmarks.pytorch import torch_steps
from benchmarks.workloads import QWEN3, Shapes, dimension_numbers, ideal_flops
from benchmarks.yolo26 import yolo26
from mimuon_jax import muon
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, newton_schulz

STEPS = JORDAN.steps  # the default polynomial of optax and torch; "default" alone uses another
BASELINE = "optax"

#: A round calls a short function several times and then waits, since on a GPU starting a program
#: may take longer than its computation: at least these seconds, and at most so many calls, whose
#: results are all in memory.
_ROUND, _MOST = 0.05, 20


TINY: Shapes = {"stack": (2, 32, 64), "kernel": (3, 3, 4, 16), "tall": (64, 32)}


class Ceiling(NamedTuple):
    """The rate of one large matrix product of random numbers: the best that can be reached."""

    product: str
    size: int
    tflops: float


class Row(NamedTuple):
    """One implementation on one set of matrices."""

    set: str
    implementation: str
    seconds: float  # median
    ratio: float  # the baseline's median over this one: above 1 is faster
    difference: float  # largest of an entry from the baseline's; entries are about 0.02 / sqrt(n)
    tflops: float  # the standard iteration's FLOPs over the time, whatever was computed
    ceiling: float  # rate as a share of that of a large product of the same kind
    compiled: float  # seconds to lower and compile; fewer if JAX's cache has it
    temporaries: float  # GB in addition to arguments and results


class Program(NamedTuple):
    """An implementation that is ready to run."""

    run: Callable[[int], None]  # so many steps, until all are computed
    kind: str  # of its products, see `products`
    updates: Mapping[str, jax.Array] | None = None  # of one step
    compiled: float = math.nan
    temporaries: float = math.nan


def sets() -> dict[str, Shapes]:
    """Named sets of matrices."""
    decoder = QWEN3["0.6b"]
    whole = {"qwen3-0.6b, 28 scanned": decoder.shapes(scanned=True)}  # 10 minutes on two CPU cores
    return (whole if jax.default_backend() != "cpu" else {}) | {
        "qwen3-0.6b, 4 layers": decoder._replace(layers=4).shapes(scanned=False),
        "qwen3-0.6b, 4 scanned": decoder._replace(layers=4).shapes(scanned=True),
        "yolo26m": yolo26("m"),
        "yolo26n": yolo26("n"),
        "small": {f"{i:03d}": (64, 64 * (1 + i % 4)) for i in range(64)},
    }


def optimizers(shapes: Shapes, half: bool) -> dict[str, tuple[optax.GradientTransformation, str]]:
    """The implementations, the baseline first, and the kind of their products, see `products`.

    Args:
        shapes: the matrices.
        half: also all forms in 16 bits, which are slow on a CPU.
    """
    by_name = dimension_numbers(shapes)
    ours = functools.partial(muon, 0.02, matrices=by_name)
    baseline = optax.contrib.muon(0.02, muon_weight_dimension_numbers=by_name)
    forms = {
        "standard": functools.partial(newton_schulz, schedule=JORDAN),
        "fast": functools.partial(fast_newton_schulz, schedule=JORDAN),
    }
    is_cpu = jax.default_backend() == "cpu"
    # Optax asks for no precision: on a GPU, float32 then is TF32.
    found = {BASELINE: (baseline, "float32" if is_cpu else "tf32")}
    for name, function in forms.items():
        found[name] = (ours(orthogonalizer=functools.partial(function, dtype="float32")), "float32")
    found["default"] = (ours(), "float32" if is_cpu else "float16")
    if half:
        found[f"{BASELINE} bfloat16"] = (_in_bfloat16(baseline), "bfloat16")
        for name, function in forms.items():
            for dtype in ("bfloat16", "float16"):
                rounded = functools.partial(function, dtype=dtype)
                found[f"{name} {dtype}"] = (ours(orthogonalizer=rounded), dtype)
    return found


def _in_bfloat16(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with bfloat16 inputs and state: the baseline computes in the dtype it is given."""
    cast = functools.partial(optax.tree.cast, dtype=jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(cast(updates), state, cast(params))
        return optax.tree.cast(updates, jnp.float32), state

    return optax.GradientTransformation(lambda params: tx.init(cast(params)), update)


def medians(functions: Mapping[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Median seconds of one call of each function; every round times all of them in turn."""
    calls = {}
    for name, function in functions.items():
        function(1)  # the first time takes longer
        calls[name] = min(max(math.ceil(_ROUND / _seconds(function, 1)), 1), _MOST)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(_seconds(function, calls[name]) / calls[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(function: Callable[[int], None], calls: int) -> float:
    """How long so many calls take."""
    start = time.perf_counter()
    function(calls)
    return time.perf_counter() - start


def queued(call: Callable[[], Any]) -> Callable[[int], None]:
    """Calls a program of JAX so many times, and waits for the last."""

    def run(times: int) -> None:
        result = None
        for _ in range(times):
            result = call()
        jax.block_until_ready(result)

    return run


def compiled(function: Callable, *arguments: Any) -> tuple[Any, float, float]:
    """The compiled program, the seconds that took, and its temporaries in GB."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return program, seconds, memory.temp_size_in_bytes / 1e9 if memory else math.nan


def rows(names: list[str] | None = None, rounds: int = 5) -> Iterator[NamedTuple]:
    """Ceilings, then one row per implementation and set."""
    ceilings = {}
    for ceiling in products(rounds):
        ceilings[ceiling.product] = ceiling.tflops
        yield ceiling
    half = jax.default_backend() != "cpu"
    for name, shapes in sets().items():
        if names is None or {name, name.split(",")[0]} & set(names):
            found = optimizers(shapes, half)
            yield from of_set(name, shapes, found, ceilings, rounds, torch=True)


def products(rounds: int = 5) -> Iterator[Ceiling]:
    """Rates of a large square product, accumulated in float32."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    for kind in ("float16", "bfloat16", "tf32", "float32"):
        dtype = "float32" if kind == "tf32" else kind
        precision = "highest" if kind == "float32" else "default"
        # Random: zeros and ones take less power, so that a GPU's clock is higher.
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        square = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = medians({kind: queued(functools.partial(square, x, x))}, rounds)
        yield Ceiling(kind, size, 2e-12 * size**3 / seconds[kind])


def of_set(
    name: str,
    shapes: Shapes,
    found: Mapping[str, tuple[optax.GradientTransformation, str]],
    ceilings: Mapping[str, float],
    rounds: int,
    *,
    torch: bool = False,
    profiled: bool = False,
) -> Iterator[NamedTuple]:
    """Implementations on one set of matrices, each alternating with the baseline.

    Args:
        name: of the set.
        shapes: the matrices.
        found: the implementations, see `optimizers`.
        ceilings: TFLOP/s by kind of product.
        rounds: measurements, of which the median is taken.
        torch: whether PyTorch's implementations follow.
        profiled: whether the kernels of "default" follow.
    """
    random = np.random.default_rng(0)
    arrays = {n: random.standard_normal(s, np.float32) for n, s in shapes.items()}
    gradients = {n: jnp.asarray(x) for n, x in arrays.items()}
    flops = 1e-12 * ideal_flops(shapes, STEPS)
    kept: dict[str, Program] = {}

    def timed(implementation: str, make: Callable[[], Program]) -> Iterator[Row]:
        program = make()
        if implementation in (BASELINE, "default"):
            kept[implementation] = program
        baseline = kept.get(BASELINE)
        runs = {} if baseline is None else {BASELINE: baseline.run}
        seconds = medians(runs | {implementation: program.run}, rounds)
        median = seconds[implementation]
        yield Row(
            name,
            implementation,
            median,
            seconds.get(BASELINE, math.nan) / median,
            _difference(program, baseline),
            flops / median,
            flops / median / ceilings.get(program.kind, math.nan),
            program.compiled,
            program.temporaries,
        )

    for implementation, (tx, kind) in found.items():
        make = functools.partial(_program, tx, kind, gradients)
        yield from guarded(f"{name}: {implementation}", timed(implementation, make))
    if torch:
        yield from guarded(f"{name}: torch", _of_torch(name, arrays, timed))
    if profiled and "default" in kept:
        program = f"{name}: default"
        yield from guarded(
            f"kernels of {program}", kernels(program, functools.partial(kept["default"].run, 1))
        )


def _of_torch(name: str, arrays: Any, timed: Callable[..., Iterator[Row]]) -> Iterator[NamedTuple]:
    """Those that are installed."""
    found = torch_steps(arrays)
    if not found:
        yield Part(f"{name}: torch", 0.0, "skipped, torch is not installed")
    for implementation, (run, kind) in found.items():
        make = functools.partial(Program, run, kind)
        yield from guarded(f"{name}: {implementation}", timed(implementation, make))


def _program(tx: optax.GradientTransformation, kind: str, gradients: Any) -> Program:
    """Compiles an update."""
    state = jax.jit(tx.init)(gradients)
    update, seconds, temporaries = compiled(tx.update, gradients, state, gradients)
    call = functools.partial(update, gradients, state, gradients)
    return Program(queued(call), kind, call()[0], seconds, temporaries)


def _difference(program: Program, baseline: Program | None) -> float:
    """Of all entries of both updates, the largest."""
    if program.updates is None or baseline is None:
        return math.nan
    return float(_largest_difference(program.updates, baseline.updates))


@jax.jit
def _largest_difference(a: Any, b: Any) -> jax.Array:
    """Of all entries."""
    largest = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), a, b)
    return jnp.max(jnp.stack(jax.tree.leaves(largest)))
