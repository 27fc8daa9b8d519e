"""Wall-clock time of one optimizer step and of its baselines, alternating in one process."""

import functools
import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workloads import QWEN3, Shapes, dimension_numbers, ideal_flops
from benchmarks.yolo26 import yolo26
from mimuon_jax import muon
from mimuon_jax.linalg.coefficients import JORDAN
from mimuon_jax.linalg.newton_schulz import fast_newton_schulz, newton_schulz

STEPS = JORDAN.steps  # the default polynomial of optax and torch; "default" alone uses another
BASELINE = "optax"


class Row(NamedTuple):
    """One implementation on one set of matrices."""

    set: str
    implementation: str
    seconds: float  # median
    ratio: float  # the baseline's median over this one: above 1 is faster
    difference: float  # largest of an entry from the baseline's; entries are about 0.02 / sqrt(n)
    tflops: float  # the standard iteration's FLOPs over the time, whatever was computed
    ceiling: float  # rate as a share of that of a large matrix product in the same dtype


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


def optimizers(shapes: Shapes) -> dict[str, tuple[optax.GradientTransformation, str]]:
    """The implementations, and the dtype of their products."""
    by_name = dimension_numbers(shapes)
    ours = functools.partial(muon, 0.02, matrices=by_name)
    standard = functools.partial(newton_schulz, schedule=JORDAN)
    fast = functools.partial(fast_newton_schulz, schedule=JORDAN)
    found = {
        BASELINE: (optax.contrib.muon(0.02, muon_weight_dimension_numbers=by_name), "float32"),
        "standard": (ours(orthogonalizer=standard), "float32"),
        "fast": (ours(orthogonalizer=fast), "float32"),
        "default": (ours(), "float32"),
    }
    if jax.default_backend() != "cpu":  # 16 bits are faster there
        baseline = optax.contrib.muon(0.02, muon_weight_dimension_numbers=by_name)
        found[f"{BASELINE} bfloat16"] = (_in_bfloat16(baseline), "bfloat16")
        for function, name in ((standard, "standard"), (fast, "fast")):
            for dtype in ("bfloat16", "float16"):
                half = functools.partial(function, dtype=dtype)
                found[f"{name} {dtype}"] = (ours(orthogonalizer=half), dtype)
    return found


def _in_bfloat16(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with bfloat16 inputs and state: the baseline computes in the dtype it is given."""
    cast = functools.partial(optax.tree.cast, dtype=jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(cast(updates), state, cast(params))
        return optax.tree.cast(updates, jnp.float32), state

    return optax.GradientTransformation(lambda params: tx.init(cast(params)), update)


def medians(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; every round calls all of them in turn."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows(names: list[str] | None = None, rounds: int = 5) -> Iterator[Row]:
    """One row per implementation and set."""
    ceilings = {dtype: matmul_rate(dtype) for dtype in ("float32", "bfloat16", "float16")}
    for name, shapes in sets().items():
        if names is None or {name, name.split(",")[0]} & set(names):
            yield from _of_set(name, shapes, ceilings, rounds)


def _of_set(name: str, shapes: Shapes, ceilings: Mapping[str, float], rounds: int) -> Iterator[Row]:
    """All implementations on one set."""
    random = np.random.default_rng(0)
    gradients = {n: jnp.asarray(random.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    functions: dict[str, Callable[[], Any]] = {}
    dtypes = {}
    for implementation, (tx, dtype) in optimizers(shapes).items():
        state, update = tx.init(gradients), jax.jit(tx.update)
        functions[implementation] = functools.partial(_run, update, gradients, state)
        dtypes[implementation] = dtype
    wanted = functions[BASELINE]()
    differences = {
        n: max(float(jnp.max(jnp.abs(run()[k] - wanted[k]))) for k in wanted)
        for n, run in functions.items()
    }
    functions |= torch_steps(shapes)
    seconds = medians(functions, rounds)
    flops = ideal_flops(shapes, STEPS)
    for implementation, median in seconds.items():
        rate = flops / median
        yield Row(
            name,
            implementation,
            median,
            seconds[BASELINE] / median,
            differences.get(implementation, math.nan),
            rate / 1e12,
            rate / ceilings[dtypes.get(implementation, "float32")],
        )


def _run(update: Callable, gradients: Any, state: Any) -> Any:
    """The updates of one step, once they are computed."""
    return jax.block_until_ready(update(gradients, state, gradients)[0])


def matmul_rate(dtype: str, rounds: int = 5) -> float:
    """FLOP/s of one large square matrix product: the best that the machine can do."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    seconds = medians({dtype: lambda: product(x, x).block_until_ready()}, rounds)
    return 2.0 * size**3 / seconds[dtype]


def torch_steps(shapes: Shapes) -> dict[str, Callable[[], Any]]:
    """`torch.optim.Muon` (bfloat16) and Jordan's iteration in float32; empty without torch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    torch: Any = importlib.import_module("torch")  # not a dependency of ours
    random = np.random.default_rng(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = []
    for shape in shapes.values():
        matrices = (-1, *shape[-2:]) if len(shape) == 3 else (1, math.prod(shape[:-1]), shape[-1])
        for matrix in random.standard_normal(shape).astype(np.float32).reshape(matrices):
            parameter = torch.nn.Parameter(torch.zeros(matrix.shape, device=device))
            parameter.grad = torch.from_numpy(matrix).to(device)
            parameters.append(parameter)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def iterate() -> None:
        for parameter in parameters:
            x = parameter.grad if parameter.shape[0] <= parameter.shape[1] else parameter.grad.T
            x = x / x.norm()
            for a, b, c in JORDAN.triples:
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
        wait()

    found: dict[str, Callable[[], Any]] = {"torch float32": torch.no_grad()(iterate)}
    if hasattr(torch.optim, "Muon"):
        optimizer = torch.optim.Muon(parameters, lr=0.02)
        found["torch.optim.Muon"] = lambda: (optimizer.step(), wait())
    return found
