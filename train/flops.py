"""Model FLOPs per step, for the model FLOPs utilization (MFU)."""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from train.task import Task, Tree

# Dense bfloat16 FLOP/s with float32 accumulation per JAX device, by the first words of its
# `device_kind`; the longest match wins. NVIDIA: data sheets of H100 (half of the numbers with
# sparsity), H200, A100, L4, L40S. TPU: "System architecture" pages of cloud.google.com/tpu/docs,
# per chip; for v2 and v3 a device is a core, half a chip.
PEAK = {
    "NVIDIA H100": 989.4e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, or None if unknown, as for every CPU.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("cpu")
        (989400000000000.0, None)
    """
    words = device_kind.split()
    prefixes = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    whole = next((PEAK[prefix] for prefix in prefixes if prefix in PEAK), None)
    if whole is not None or "-" not in device_kind:
        return whole
    return peak_flops(device_kind.partition("-")[0])  # NVIDIA A100-SXM4-80GB


def model_flops(task: Task) -> int:
    """FLOPs of the model in one step: three times the products of its forward pass.

    Products are matrix products and convolutions, with two FLOPs per multiplication; the backward
    pass has twice as many. Rematerialization and the optimizer are not counted, so that the share
    of the peak is one of useful work (the convention of PaLM, arXiv 2204.02311, appendix B).

    Args:
        task: its loss is traced, not run, on the shapes of one batch.

    Returns:
        FLOPs per step, over all devices.
    """
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    processes = jax.process_count()
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * processes, *x.shape[1:]), x.dtype),
        task.batches[0],
    )
    step = jax.ShapeDtypeStruct((), jax.numpy.int32)
    forward = jax.make_jaxpr(task.loss)(params, model_state, batch, jax.random.key(0), step)
    return 3 * product_flops(forward.jaxpr)


def product_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of the products in a program: every iteration of a scan, the larger branch of a cond.

    A `while` counts as one iteration, since their number is unknown.

    Example:
        >>> x = jax.numpy.ones((2, 3))
        >>> product_flops(jax.make_jaxpr(lambda x: x @ x.T)(x).jaxpr)
        24
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    """FLOPs of one operation, including the programs inside it."""
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return 2 * terms * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * (kernel.size // outputs) * equation.outvars[0].aval.size
    inside = [product_flops(program) for program in _programs(list(parameters.values()))]
    if name == "cond":
        return max(inside, default=0)
    return sum(inside) * (parameters["length"] if name == "scan" else 1)


def _programs(values: list[Tree]) -> list[Jaxpr]:
    """The programs among the parameters of an operation."""
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _programs(list(value))
        elif isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
    return found
