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
    """The implementations, and the kind of their products, see `products`."""
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
    if not is_cpu:  # 16 bits are faster there
        found[f"{BASELINE} bfloat16"] = (_in_bfloat16(baseline), "bfloat16")
        for name, function in forms.items():
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


def rows(names: list[str] | None = None, rounds: int = 5) -> Iterator[NamedTuple]:
    """Ceilings, then one row per implementation and set."""
    ceilings = {}
    for ceiling in products(rounds):
        ceilings[ceiling.product] = 1e12 * ceiling.tflops
        yield ceiling
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


def products(rounds: int = 5) -> Iterator[Ceiling]:
    """Rates of a large square product, accumulated in float32."""
    is_cpu = jax.default_backend() == "cpu"
    size = 2048 if is_cpu else 8192
    kinds = {"float32": ("float32", "highest"), "tf32": ("float32", "default")}
    kinds |= {dtype: (dtype, "default") for dtype in ("bfloat16", "float16")}
    for kind, (dtype, precision) in kinds.items():
        # Random: zeros and ones take less power, so that a GPU's clock is higher.
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        square = jax.jit(
            functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32)
        )
        seconds = medians({kind: lambda f=square, x=x: f(x, x).block_until_ready()}, rounds)
        yield Ceiling(kind, size, 2e-12 * size**3 / seconds[kind])


def torch_steps(shapes: Shapes) -> dict[str, Callable[[], Any]]:
    """`torch.optim.Muon` (bfloat16) and Jordan's iteration in float32; empty without torch.

    Also the Gram form of the package `gram-newton-schulz` if it is installed (float16).
    """
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
    if importlib.util.find_spec("gram_newton_schulz") is not None:
        package: Any = importlib.import_module("gram_newton_schulz")
        gram = package.GramNewtonSchulz(
            ns_coefficients=[list(triple) for triple in JORDAN.triples],
            gram_newton_schulz_reset_iterations=[2],
            ns_use_kernels=importlib.util.find_spec("quack") is not None,  # its kernels
        )
        by_shape: dict[Any, list[Any]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter.grad)
        stacks = [torch.stack(gradients) for gradients in by_shape.values()]
        found["gram-newton-schulz"] = lambda: ([gram(stack) for stack in stacks], wait())
    return found
