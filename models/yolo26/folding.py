"""The model for inference: one head, with norms merged into the convolutions."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.yolo26.blocks import EPSILON
from models.yolo26.modeling import HEADS, YOLO26
from models.yolo26.params import Flat, flat_arrays, with_arrays


def fold(model: YOLO26, *, head: str = "one_to_one") -> YOLO26:
    """The model for inference: one head, with norms merged into the convolutions before them.

    `W' = g W`, `b' = bias - g mean`, `g = scale / sqrt(var + 1e-3)`: equal outputs up to rounding.

    Args:
        model: a trained model.
        head: the head to keep, "one_to_one" or "one_to_many".

    Returns:
        A model with its own parameters, to be called without `training`.

    Raises:
        ValueError: an unknown head, one that the model does not have, or a model that is already
            folded.
    """
    if head not in HEADS or getattr(model, head) is None:
        built = [name for name in HEADS if getattr(model, name) is not None]
        raise ValueError(f"head={head!r} is not a head of this model; use {' or '.join(built)}")
    if model.folded:
        raise ValueError("this model is already folded; fold the one that was trained")
    target = nnx.eval_shape(
        lambda: YOLO26(
            model.config,
            heads=(head,),
            folded=True,
            rngs=nnx.Rngs(0),
            dtype=model.dtype,
            param_dtype=model.param_dtype,
        )
    )
    names = list(flat_arrays(target))
    return with_arrays(target, jax.jit(lambda given: _folded(given, names))(flat_arrays(model)))


def _folded(given: Flat, names: list[str]) -> Flat:
    """The arrays of the folded model, by their names, from those of the trained one."""
    result: Flat = {}
    for name in names:
        block, _, array = name.rpartition("/conv/")
        if not block:  # the last convolutions have no norm
            result[name] = given[name]
            continue
        scale, bias, mean, var = (
            given[f"{block}/norm/{x}"] for x in ("scale", "bias", "mean", "var")
        )
        gain = scale.astype(jnp.float32) * jax.lax.rsqrt(var + EPSILON)
        kernel = given[f"{block}/conv/kernel"]
        exact = {
            "kernel": kernel.astype(jnp.float32) * gain[None, None, None],
            "bias": bias.astype(jnp.float32) - gain * mean,
        }
        result[name] = exact[array].astype(kernel.dtype)
    return result
