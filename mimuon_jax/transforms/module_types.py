"""The rule by module type: which axes of each parameter make a matrix, read from the layer classes.

Frameworks are not imported here. A layer is recognized by the names and packages of its class and
base classes, and a model can only exist if its framework was imported. Unknown layers, and
parameters that a user makes with ``self.param``, are left to the rule by name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax

from mimuon_jax.transforms.given import Names, Role, is_absent, named_leaves, nested
from mimuon_jax.transforms.naming import Verdict, embedding_or_head
from mimuon_jax.types import MuonDimensionNumbers, Tree

_NORMS = {"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "WeightNorm"}
_FLAX = {"Linear", "Dense", "DenseParams", "LinearGeneral", "DenseGeneral", "Einsum", "LoRA"}
_FLAX |= {"Conv", "ConvLocal", "ConvTranspose", "Embed"} | _NORMS
_EQUINOX = {"Linear", "Conv", "ConvTranspose", "Embedding", "GRUCell", "LSTMCell"}
_EQUINOX |= _NORMS - {"WeightNorm"}  # which wraps another layer
_HALIAX = {"Linear", "Embedding", "LayerNorm", "RmsNorm"}


def roles_of(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Roles of a model's parameters, read from its layer classes, for the argument ``matrices``.

    It knows the layers of Flax nnx and linen (``Linear``, ``Dense``, ``LinearGeneral``,
    ``DenseGeneral``, ``Einsum``, ``Conv``, ``ConvTranspose``, ``Embed``, norms, ``LoRA``, and
    layers made of these: attention, LSTM and GRU cells), those of Equinox, whose weights are
    ``[output, reduction]``, and ``Linear``, embeddings and norms of Haliax. Depthwise and grouped
    convolutions are auxiliary: a grouped one has one matrix per group of output channels, which
    axes alone cannot express (see `split_fused`). Embeddings, norms, biases, and layers that are
    named as an output head or embedding (``lm_head``) are auxiliary too.

    Args:
      model: an nnx or Equinox module, or a linen module.
      *args: for a linen module, the arguments of ``model.init`` after the random key (arrays or
        ``jax.ShapeDtypeStruct``). The model is traced; nothing is computed.
      **kwargs: keyword arguments of ``model.init``, likewise.

    Returns:
      A tree of `Role`, with the paths of the parameters. Parameters of unknown modules are not in
      it and follow the default rule. To change some roles, use `by_path` with
      ``otherwise=roles_of(model)``.

    Raises:
      TypeError: the model belongs to another framework, or it is a linen model without inputs.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from mimuon_jax import roles_of
      >>> model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
      >>> roles_of(model)["query"]["kernel"].numbers
      MuonDimensionNumbers(reduction_axis=(-3,), output_axis=(-2, -1))
    """
    packages = {base.__module__.split(".")[0]: base for base in type(model).__mro__}
    if "flax" in packages and packages["flax"].__module__.startswith("flax.linen"):
        if not args and not kwargs:
            raise TypeError(
                "roles_of needs the inputs of a linen model, as `model.init` does after the "
                "random key: roles_of(model, inputs)"
            )
        return nested(_linen_roles(model, *args, **kwargs))
    if "flax" in packages:
        return nested(_nnx_roles(model))
    if "equinox" in packages:
        return nested(equinox_roles(model))
    raise TypeError(
        f"roles_of knows modules of Flax (nnx, linen) and Equinox, not {type(model).__name__}; "
        "give dimension numbers as a tree, or by patterns of paths with mimuon_jax.by_path"
    )


def equinox_roles(tree: Tree) -> dict[Names, Role]:
    """Roles by module type of an Equinox model, or of its parameters or gradients; else empty.

    Models of Haliax are Equinox models.
    """
    if "equinox" not in sys.modules:
        return {}
    entries, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: is_absent(x) or bool(_equinox_kinds(x))
    )
    found = {}
    for path, layer in entries:
        kinds = _equinox_kinds(layer)
        above = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        for below, leaf in named_leaves(layer) if kinds else ():
            rank = len(getattr(leaf, "shape", ()))
            if rank >= 2:
                verdict = _equinox_verdict(kinds, layer, below[0])
                found |= _as_role(above + below, leaf.shape, layer, verdict)
    return found


def _nnx_roles(model: Any) -> dict[Names, Role]:
    """Roles by module type of an nnx model."""
    nnx, found = sys.modules["flax.nnx"], {}
    for path, layer in nnx.iter_modules(model):
        kinds = _kinds(layer, "flax") & _FLAX
        for own, value in vars(layer).items() if kinds else ():
            if isinstance(value, nnx.Variable):
                shape = tuple(value.shape)
                verdict = _flax_verdict(kinds, layer, own)
                found |= _as_role((*map(str, path), own), shape, layer, verdict)
    return found


def _linen_roles(model: Any, *args: Any, **kwargs: Any) -> dict[Names, Role]:
    """Roles by module type of a linen model."""
    linen, layers, found = sys.modules["flax.linen"], {}, {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layers.setdefault(context.module.path, context.module)
        return call(*args, **kwargs)

    with linen.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), *args, **kwargs)
    for names, leaf in named_leaves(variables.get("params", {})):
        layer = layers.get(names[:-1])
        kinds = _kinds(layer, "flax") & _FLAX
        if kinds:
            verdict = _flax_verdict(kinds, layer, names[-1])
            found |= _as_role(names, leaf.shape, layer, verdict)
    return found


def _kinds(module: Any, package: str) -> set[str]:
    """Names of the classes of a framework that a module is an instance of."""
    bases = type(module).__mro__
    return {base.__name__ for base in bases if base.__module__.split(".")[0] == package}


def _equinox_kinds(module: Any) -> set[str]:
    """Names of the known layer classes of Equinox or Haliax that a module is an instance of."""
    return (_kinds(module, "equinox") & _EQUINOX) | (_kinds(module, "haliax") & _HALIAX)


def _as_role(
    names: Names, shape: Sequence[int], layer: Any, verdict: Verdict | None
) -> dict[Names, Role]:
    """``{names: role}`` of an array of rank 2 or more if there is a verdict; else empty."""
    if verdict is None or len(shape) < 2:
        return {}
    numbers, why = verdict.numbers, f"{verdict.why} of {type(layer).__name__}"
    thing = embedding_or_head(names)
    if numbers is not None and thing:
        numbers, why = None, f"{why} that names {thing}"
    return {names: Role("/".join(names), tuple(shape), numbers, why, "type")}


def _flax_verdict(kinds: set[str], layer: Any, own: str) -> Verdict | None:
    """The verdict for a parameter of a Flax layer; axes count from the end, stacks come first."""
    if kinds & (_NORMS | {"Embed"}) or own == "bias":
        return Verdict(None, own)
    if own in ("lora_a", "lora_b"):
        return Verdict(MuonDimensionNumbers(-2, -1), own)
    if own != "kernel":
        return None
    if "Einsum" in kinds:
        return _einsum_verdict(layer.einsum_str)
    if kinds & {"LinearGeneral", "DenseGeneral"}:
        outputs = layer.out_features if "LinearGeneral" in kinds else layer.features
        n, m = _length(outputs), _length(layer.axis)
        return Verdict(
            MuonDimensionNumbers(tuple(range(-n - m, -n)), tuple(range(-n, 0))), "kernel"
        )
    if not kinds & {"Conv", "ConvTranspose"}:  # ConvLocal has a matrix per position
        return Verdict(MuonDimensionNumbers(-2, -1), "kernel")
    output = -2 if getattr(layer, "transpose_kernel", False) else -1
    spatial = tuple(range(-_length(layer.kernel_size) - 2, -2))
    numbers = MuonDimensionNumbers((*spatial, -3 - output), output)
    return _grouped(numbers, getattr(layer, "feature_group_count", 1), _in_channels(layer))


def _equinox_verdict(kinds: set[str], layer: Any, own: str) -> Verdict | None:
    """The verdict for a parameter of an Equinox layer; weights are ``[output, reduction]``."""
    if kinds & (_NORMS | {"Embedding", "RmsNorm"}) or own.startswith("bias"):
        return Verdict(None, own)
    if not own.startswith("weight"):
        return None
    if hasattr(layer, "Out"):
        return _haliax_verdict(layer)
    if kinds & {"Conv", "ConvTranspose"}:
        output = -layer.num_spatial_dims - 2
        numbers = MuonDimensionNumbers(tuple(range(output + 1, 0)), output)
        return _grouped(numbers, layer.groups, layer.in_channels)
    return Verdict(MuonDimensionNumbers(-1, -2), own)


def _haliax_verdict(layer: Any) -> Verdict:
    """The verdict for the weight of a Haliax ``Linear``, by the names of its axes."""
    names = [axis.name for axis in layer.weight.axes]

    def axes(spec: Any) -> tuple[int, ...]:
        own = [spec] if hasattr(spec, "name") else spec
        return tuple(names.index(axis.name) - len(names) for axis in own)

    return Verdict(MuonDimensionNumbers(axes(layer.In), axes(layer.Out)), "weight")


def _grouped(numbers: MuonDimensionNumbers, groups: int, channels: int | None) -> Verdict:
    """The verdict for a convolution: a matrix, unless its channels are in groups."""
    if groups == 1:
        return Verdict(numbers, "kernel")
    kind = "depthwise kernel" if groups == channels else f"kernel in {groups} groups"
    return Verdict(None, kind)


def _einsum_verdict(equation: str | None) -> Verdict | None:
    """The kernel's axes by ``"inputs,kernel->outputs"``; None if the equation does not tell."""
    if equation is None or "." in equation.replace("...", ""):
        return None
    inputs, result = equation.replace(" ", "").split("->")
    inputs, kernel = inputs.split(",")
    if "." in kernel:
        return None
    at = {letter: i - len(kernel) for i, letter in enumerate(kernel)}
    reduction = tuple(at[letter] for letter in kernel if letter not in result)
    output = tuple(at[x] for x in kernel if x in result and x not in inputs)
    return (
        Verdict(MuonDimensionNumbers(reduction, output), "kernel") if reduction and output else None
    )


def _length(x: int | Sequence[int]) -> int:
    """How many axes an int or a sequence stands for in an argument of a Flax layer."""
    return 1 if isinstance(x, int) else len(x)


def _in_channels(layer: Any) -> int | None:
    """Input channels of a Flax convolution; None for linen, which infers them from its input."""
    return getattr(layer, "in_features", None)
