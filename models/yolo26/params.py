"""The parameters of the detector as a tree: matrix axes, groups, and PyTorch names."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from models.yolo26.config import YOLO26Config
from models.yolo26.modeling import YOLO26

Tree = Any
Flat = dict[str, jax.Array]

# Ordered (regular expression for a path, factor of the learning rate); 1 where none matches.
LEARNING_RATE_FACTORS = ((r"one_to_(many|one)/classes/.*", 3.0),)

# Our names and those in a PyTorch state dict.
TORCH_NAMES = {
    "layers": "model",
    "one_to_many/boxes": "model.23.cv2",
    "one_to_many/classes": "model.23.cv3",
    "one_to_one/boxes": "model.23.one2one_cv2",
    "one_to_one/classes": "model.23.one2one_cv3",
    "first": "0",
    "second": "1",
    "depthwise1": "0.0",
    "pointwise1": "0.1",
    "depthwise2": "1.0",
    "pointwise2": "1.1",
    "output/kernel": "2.weight",
    "output/bias": "2.bias",
    "blocks": "m",
    "bottleneck": "0",
    "attend": "1",
    "attention": "attn",
    "qkv": "qkv",
    "position": "pe",
    "project": "proj",
    "expand": "ffn.0",
    "contract": "ffn.1",
    "split": "cv1",
    "reduce": "cv1",
    "main": "cv1",
    "narrow": "cv1",
    "merge": "cv2",
    "bypass": "cv2",
    "widen": "cv2",
    "join": "cv3",
    "conv/kernel": "conv.weight",
    "conv/bias": "conv.bias",
    "norm/scale": "bn.weight",
    "norm/bias": "bn.bias",
    "norm/mean": "bn.running_mean",
    "norm/var": "bn.running_var",
}
_OURS = re.compile("|".join(sorted(TORCH_NAMES, key=len, reverse=True)))
_COUNTER = "bn.num_batches_tracked"


def matrix_dimension_numbers(params: Tree, *, depthwise: bool = False) -> Tree:
    """Which axes of each parameter form a matrix: a tree like `params`, in terms of optax.

    A kernel `[kh, kw, in, out]` is the matrix `[kh kw in, out]`; norms and biases are auxiliary.

    Args:
        params: parameters of `YOLO26`, as `nnx.state(model, nnx.Param)`, as `nnx.to_pure_dict` of
            it, or any tree of arrays (or shapes) with the same paths.
        depthwise: True takes a depthwise kernel `[3, 3, 1, channels]` as the matrix
            `[9, channels]`, as the published recipe does; False leaves it to the auxiliary
            optimizer, since its columns are filters of separate channels, not a map between them.

    Returns:
        A tree of the same structure with `MuonDimensionNumbers` or None as leaves. The function
        itself may be passed where a callable is taken.

    Example:
        >>> kernel = jax.ShapeDtypeStruct((3, 3, 8, 16), "float32")
        >>> matrix_dimension_numbers({"conv": {"kernel": kernel}})["conv"]["kernel"]
        MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    """

    def numbers(leaf: Any) -> MuonDimensionNumbers | None:
        matrix = len(leaf.shape) == 4 and (depthwise or not is_depthwise(leaf))
        return MuonDimensionNumbers((0, 1, 2), 3) if matrix else None

    return jax.tree.map(numbers, params)


def is_depthwise(kernel: Any) -> bool:
    """Whether a parameter is the kernel of a depthwise convolution, `[kh, kw, 1, channels]`."""
    return len(kernel.shape) == 4 and kernel.shape[2] == 1


def decayed(params: Tree) -> Tree:
    """Whether weight decay applies to each parameter: to kernels, not to norms and biases.

    Args:
        params: as for `matrix_dimension_numbers`.

    Returns:
        A tree of booleans of the same structure, as `optax.masked` takes it.

    Example:
        >>> decayed({"bias": jax.ShapeDtypeStruct((8,), "float32")})
        {'bias': False}
    """
    return jax.tree.map(lambda leaf: len(leaf.shape) == 4, params)


def parameter_count(config: YOLO26Config) -> int:
    """Number of trained parameters, including both heads; nothing is allocated.

    Example:
        >>> from models.yolo26 import scaled
        >>> parameter_count(scaled("n", 20))
        2511600
    """
    model = nnx.eval_shape(lambda: YOLO26(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def torch_name(path: str) -> str:
    """The name of a parameter or running statistic in a PyTorch state dict.

    Example:
        >>> torch_name("layers/2/blocks/0/narrow/conv/kernel")
        'model.2.m.0.cv1.conv.weight'
    """
    return _OURS.sub(lambda found: TORCH_NAMES[found[0]], path).replace("/", ".")


def to_torch(model: YOLO26) -> dict[str, np.ndarray]:
    """The arrays of a model with the names and layout of a PyTorch state dict.

    Args:
        model: any `YOLO26`.

    Returns:
        Kernels `[out, in, kh, kw]`, norms, running statistics, and the counters of batches of such
        a state dict, which have no meaning here, as zeros.
    """
    named = {}
    for path, array in flat_arrays(model).items():
        name, array = torch_name(path), np.asarray(array)
        named[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        if name.endswith("bn.running_var"):
            named[name.replace("bn.running_var", _COUNTER)] = np.zeros((), np.int64)
    return named


def from_torch(model: YOLO26, arrays: Mapping[str, np.ndarray]) -> YOLO26:
    """Builds a model with the arrays of a PyTorch state dict.

    Args:
        model: a model of the same architecture, possibly abstract (`nnx.eval_shape`); not changed.
        arrays: by PyTorch name, as `to_torch` returns them; counters of batches are ignored, and
            each array is cast to the dtype of the model.

    Returns:
        A new model.

    Raises:
        ValueError: names that this model does not have, names that are missing, or an array of
            another shape; all of them are listed.
    """
    ours = flat_arrays(model)
    places = {torch_name(path): path for path in ours}
    given = {name for name in arrays if not name.endswith(_COUNTER)}
    wrong = [f"{name} is not a parameter of this model" for name in sorted(given - set(places))]
    wrong += [f"{name} is missing" for name in sorted(set(places) - given)]
    filled: Flat = {}
    for name in sorted(given & set(places)):
        array, place = np.asarray(arrays[name]), ours[places[name]]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        if array.shape != place.shape:
            wrong.append(f"{name} is {list(array.shape)} there and {list(place.shape)} here")
        filled[places[name]] = jnp.asarray(array, place.dtype)
    if wrong:
        raise ValueError(
            f"these arrays do not fit a model of {model.config}: {'; '.join(wrong)}. Use the scale "
            "and the number of classes that they were made with"
        )
    return with_arrays(model, filled)


def flat_arrays(model: YOLO26) -> Flat:
    """Parameters and running statistics by path: `layers/0/conv/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {"/".join(_names(path)): x for path, x in leaves}


def with_arrays(model: YOLO26, arrays: Flat) -> YOLO26:
    """A model like another one, which may be abstract, with the given arrays by path."""
    graph, state = nnx.split(model)
    filled = jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["/".join(_names(path))], nnx.to_pure_dict(state)
    )
    return nnx.merge(graph, filled)


def _names(path: tuple) -> list[str]:
    """Key path as names, without the `value` that `nnx.State` puts at the end."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return names[:-1] if names[-1] == "value" else names
