"""How the models of this repository are sharded on a mesh: parameters in storage and in use.

A kernel is sharded along both of its axes: the axis of the residual stream over `fsdp`, and the
other axis, whose parts are independent, over `tensor`. Before use a kernel is gathered along
`fsdp`, one layer at a time, and activations stay on the devices of their rows of the batch. Without
these constraints the compiler may gather activations instead: a small decoder on `fsdp=8` then took
six times the memory. On a mesh without these axes the same rules mean replication.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import P
from jax.sharding import Mesh, NamedSharding

from models.gpt2 import GPT2Config
from models.nanogpt import NanoGPTConfig
from models.qwen3 import Qwen3Config
from train.mesh import BATCH_AXES, Rules
from train.rules import first_match, path_of

Body = Callable[[Any, Any], tuple[Any, Any]]


def qwen3(config: Qwen3Config) -> Rules:
    """Rules for Qwen3: heads, hidden features of the MLP and the vocabulary over `tensor`.

    Example:
        >>> from models.qwen3 import tiny
        >>> qwen3(tiny())[0]
        ('embed/embedding', P('tensor', 'fsdp'))
    """
    biases = [
        ("layers/.*/(query|key|value)/bias", P(None, "tensor")),
        ("layers/.*/output/bias", P()),
    ]
    biases = biases if config.attention_bias else []
    head = [] if config.tie_word_embeddings else [("lm_head/kernel", P("fsdp", "tensor"))]
    return [
        ("embed/embedding", P("tensor", "fsdp")),
        *head,
        ("layers/.*/(query|key|value|gate|up)/kernel", P(None, "fsdp", "tensor")),
        ("layers/.*/(output|down)/kernel", P(None, "tensor", "fsdp")),
        *biases,
        (".*norm/scale", P()),
    ]


def gpt2() -> Rules:
    """Rules for GPT-2: heads, hidden features of the MLP and the vocabulary over `tensor`.

    Example:
        >>> gpt2()[0]
        ('embed/embedding', P('tensor', 'fsdp'))
    """
    return [
        ("embed/embedding", P("tensor", "fsdp")),
        ("position_embed/embedding", P(None, "fsdp")),
        ("layers/.*/(query_key_value|up)/kernel", P(None, "fsdp", "tensor")),
        ("layers/.*/(output|down)/kernel", P(None, "tensor", "fsdp")),
        ("layers/.*/(query_key_value|up)/bias", P(None, "tensor")),
        (".*/(bias|scale)", P()),
    ]


def nanogpt() -> Rules:
    """Rules for the decoder of modded-nanogpt, as for Qwen3.

    Example:
        >>> nanogpt()[0]
        ('embed/embedding', P('tensor', 'fsdp'))
    """
    return [
        ("embed/embedding", P("tensor", "fsdp")),
        ("lm_head/kernel", P("fsdp", "tensor")),
        ("layers/.*/(query|key|value|up)/kernel", P(None, "fsdp", "tensor")),
        ("layers/.*/(output|down)/kernel", P(None, "tensor", "fsdp")),
        ("layers/.*/(query|key|value|up)/bias", P(None, "tensor")),
        ("lm_head/bias", P("tensor")),
        (".*/(bias|scale)", P()),
    ]


def decoder(config: Qwen3Config | GPT2Config | NanoGPTConfig) -> Rules:
    """Rules for the decoder of an architecture."""
    if isinstance(config, NanoGPTConfig):
        return nanogpt()
    return gpt2() if isinstance(config, GPT2Config) else qwen3(config)


def as_used(params: dict[str, Any], rules: Rules, mesh: Mesh) -> dict[str, Any]:
    """Parameters of a decoder as its loss uses them: all except the layers are gathered."""
    outside = {name: tree for name, tree in params.items() if name != "layers"}
    return params | _gathered(outside, rules, mesh)


def head_groups(mesh: Mesh) -> int:
    """The `groups` of `cross_entropy`: the devices that share rows and store parts of the head.

    With replicas as well (`data` above 1) XLA gathers the rows of the embedding's gradient on all
    devices, and warns of it; then every device sums the gradient of the whole head.
    """
    return 1 if mesh.shape["data"] > 1 else mesh.shape["fsdp"]


def layer_by_layer(
    rules: Rules, mesh: Mesh, remat: Callable[[Body], Body] | None = None
) -> Callable[[Body], Body]:
    """Wraps the function of one layer of a scan: gathers its parameters and keeps rows in place.

    Args:
        rules: rules for the parameters, which have a leading axis of layers.
        mesh: a mesh of Auto axes.
        remat: a wrapper such as `jax.checkpoint` around the wrapped function; a layer that is
            computed again in the backward pass is also gathered again.

    Returns:
        A wrapper of functions `(x, layer) -> (x, extra)`.
    """

    def wrap(body: Body) -> Body:
        def placed(x: Any, layer: Any) -> tuple[Any, Any]:
            y, extra = body(_rows_apart(x, mesh), _gathered(layer, rules, mesh, scanned="layers/"))
            return _rows_apart(y, mesh), extra

        return remat(placed) if remat else placed

    return wrap


def _rows_apart(x: Any, mesh: Mesh) -> Any:
    """Activations `[rows, ...]`, sharded like the rows of the batch and along no other axis."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(BATCH_AXES)))


def _gathered(tree: Any, rules: Rules, mesh: Mesh, *, scanned: str = "") -> Any:
    """Parameters gathered along `fsdp`; `scanned` is the path of the layers, for one of them."""

    def gather(key_path: tuple[Any, ...], x: Any) -> Any:
        rule = first_match(scanned + path_of(key_path), rules)
        if rule is None:
            return x
        axes = rules[rule][1][1 if scanned else 0 :]
        spec = P(*(None if axis == "fsdp" else axis for axis in axes))
        used, stored = NamedSharding(mesh, spec), NamedSharding(mesh, P(*axes))
        return _resharded(x, used, stored if head_groups(mesh) > 1 else used)

    return jax.tree_util.tree_map_with_path(gather, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resharded(x: Any, used: NamedSharding, stored: NamedSharding) -> Any:
    """A parameter as it is used, with a gradient that is sharded as the parameter is stored.

    The gradient of the constraint alone would be summed on every device, and divided afterwards.
    """
    del stored
    return jax.lax.with_sharding_constraint(x, used)


_resharded.defvjp(
    lambda x, used, stored: (_resharded(x, used, stored), None),
    lambda used, stored, _, gradient: (jax.lax.with_sharding_constraint(gradient, stored),),
)
