"""PyTorch's Muon on the same matrices, if it is installed: it is not a dependency of ours."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mimuon_jax.linalg.coefficients import JORDAN


def torch_steps(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, tuple[Callable[[int], None], str]]:
    """Functions that run so many steps and wait, and the kind of their products on a GPU.

    These are `torch.optim.Muon`, Jordan's iteration in float32, and the Gram form of the package
    `gram-newton-schulz` if it is installed. Without torch there are none.

    Args:
        arrays: stacked matrices or kernels, float32.
    """
    if importlib.util.find_spec("torch") is None:
        return {}
    torch: Any = importlib.import_module("torch")
    on_gpu = torch.cuda.is_available()
    parameters = []
    for matrix in _matrices(arrays):
        parameter = torch.nn.Parameter(torch.from_numpy(matrix).to("cuda" if on_gpu else "cpu"))
        parameter.grad = parameter.detach().clone()
        parameters.append(parameter)

    def repeated(step: Callable[[], Any]) -> Callable[[int], None]:
        def run(times: int) -> None:
            for _ in range(times):
                step()
            if on_gpu:
                torch.cuda.synchronize()

        return run

    found = {}
    if hasattr(torch.optim, "Muon"):  # from 2.9 on
        found["torch.optim.Muon"] = torch.optim.Muon(parameters, lr=0.02).step, "bfloat16"
    if importlib.util.find_spec("gram_newton_schulz") is not None:
        found["gram-newton-schulz"] = _gram_step(torch, parameters), "float16"
    found["torch float32"] = torch.no_grad()(functools.partial(_iterate, parameters)), "float32"
    return {
        name: (repeated(step), kind if on_gpu else "float32")
        for name, (step, kind) in found.items()
    }


def _matrices(arrays: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """One by one: those of a stack, and kernels ``[h, w, in, out]`` as ``[h w in, out]``."""
    for array in arrays.values():
        if array.ndim == 3:
            yield from array
        else:
            yield array.reshape(-1, array.shape[-1])


def _iterate(parameters: Iterable[Any]) -> None:
    """Jordan's iteration for each gradient."""
    for parameter in parameters:
        x = parameter.grad if parameter.shape[0] <= parameter.shape[1] else parameter.grad.T
        x = x / x.norm()
        for a, b, c in JORDAN.triples:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x


def _gram_step(torch: Any, parameters: Iterable[Any]) -> Callable[[], Any]:
    """The package's iteration on stacks of gradients of one shape, without an optimizer."""
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
    return lambda: [gram(stack) for stack in stacks]
