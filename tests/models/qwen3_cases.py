"""Small Qwen3 models with known answers, shared by the tests: the golden file and random ones."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.qwen3 import Qwen3, Qwen3Config
from tests.models.make_qwen3_golden import CASES, GOLDEN

# Every matrix is 64 x 64: its random start compiles two draws and not nine, once for all tests.
SQUARE = Qwen3Config(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    tie_word_embeddings=False,
)

LAYER_NAMES = {
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/output/kernel": "self_attn.o_proj.weight",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
OUTER_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = value
    return tree


def from_hugging_face(arrays: dict[str, np.ndarray], layers: int) -> dict[str, Any]:
    """Arrays under Hugging Face names (kernels `[output, reduction]`) as our tree."""
    flat = {}
    for path, name in LAYER_NAMES.items():
        stack = np.stack([arrays[f"model.layers.{i}.{name}"] for i in range(layers)])
        flat[f"layers/{path}"] = stack.swapaxes(1, 2) if path.endswith("kernel") else stack
    for path, name in OUTER_NAMES.items():
        if name in arrays:
            flat[path] = arrays[name].T if path.endswith("kernel") else arrays[name]
    return nested(flat)


def from_reference(arrays: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, Any]:
    """What `make_qwen3_golden.reference` returned, with parameters and gradients as our trees."""
    case: dict[str, Any] = {"config": Qwen3Config(**settings)}
    case |= {name: arrays[name] for name in ("logits", "loss")}
    case["tokens"] = jnp.asarray(arrays["tokens"], jnp.int32)
    for what in ("params", "gradients"):
        prefix = f"{what}/"
        chosen = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        case[what] = from_hugging_face(chosen, settings["num_hidden_layers"])
    return case


@functools.cache
def golden(name: str) -> dict[str, Any]:
    """One case of the golden file: config, tokens, logits, loss, params, gradients."""
    with np.load(GOLDEN) as file:
        arrays = {n.removeprefix(f"{name}/"): file[n] for n in file if n.startswith(f"{name}/")}
    return from_reference(arrays, json.loads(str(arrays["config"])))


def random_params(config: Qwen3Config, seed: int = 0) -> dict[str, Any]:
    """Parameters drawn with NumPy, which compiles nothing: kernels of size 0.3, norms around 1."""
    random = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(nnx.state(abstract(config), nnx.Param))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return (around + 0.3 * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def abstract(config: Qwen3Config, **settings: Any) -> Qwen3:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), **settings))


def build(config: Qwen3Config, params: dict[str, Any], **settings: Any) -> Qwen3:
    """A model of these parameters; every path must be filled, none may be left over."""
    graph, state = nnx.split(abstract(config, **settings))
    expected = nnx.to_pure_dict(state)
    assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, params)
    chosen = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), params, expected)
    nnx.replace_by_pure_dict(state, chosen)
    return nnx.merge(graph, state)


def next_token_loss(model: Qwen3, tokens: jax.Array, **inputs: Any) -> jax.Array:
    """Mean negative log-likelihood of each next token, in nats."""
    scores = jax.nn.log_softmax(model(tokens, **inputs)[:, :-1])
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()


@jax.jit
def forward(model: Qwen3, tokens: jax.Array, **inputs: Any) -> jax.Array:
    """Logits; one compilation for all tests of equal shapes."""
    return model(tokens, **inputs)


@functools.partial(jax.jit, static_argnames=("graph", "remat"))
def _value_and_grad(params: Any, tokens: jax.Array, *, graph: Any, **inputs: Any) -> Any:
    """Loss and gradient as a state."""
    return jax.value_and_grad(lambda p: next_token_loss(nnx.merge(graph, p), tokens, **inputs))(
        params
    )


def loss_and_gradients(model: Qwen3, tokens: Any, **inputs: Any) -> tuple[jax.Array, Any]:
    """Next-token loss and its gradient as nested dicts."""
    graph, params = nnx.split(model, nnx.Param)
    loss, gradients = _value_and_grad(params, tokens, graph=graph, **inputs)
    return loss, nnx.to_pure_dict(gradients)


def relative_error(got: Any, expected: Any) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


NAMES = tuple(CASES)
