"""A slow float64 NumPy rewrite of the GPT-2 decoder: one row, one head, one position at a time."""

import math
from typing import Any

import numpy as np

from tests.models.qwen3_oracle import as_float64, take


def logits(params: dict[str, Any], config: Any, tokens: np.ndarray) -> np.ndarray:
    """Float64 logits [batch, time, vocabulary] of a tree of parameters as nested dicts."""
    params = as_float64(params)
    return np.stack([one_sequence(params, config, row) for row in np.asarray(tokens)])


def one_sequence(params: dict[str, Any], config: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [time, vocabulary] of one row of tokens."""
    table, places = params["embed"]["embedding"], params["position_embed"]["embedding"]
    stream = np.stack([table[token] + places[place] for place, token in enumerate(tokens)])
    for index in range(config.n_layer):
        layer = take(params["layers"], index)
        stream = stream + attention(
            layer_norm(stream, layer["attention_norm"], config), layer["attention"], config
        )
        inner = dense(layer_norm(stream, layer["mlp_norm"], config), layer["mlp"]["up"])
        cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        stream = stream + dense(0.5 * inner * (1 + np.tanh(cubic)), layer["mlp"]["down"])
    return layer_norm(stream, params["final_norm"], config) @ table.T


def attention(x: np.ndarray, params: dict[str, Any], config: Any) -> np.ndarray:
    """Causal attention of [time, width], head by head, position by position."""
    size = config.n_embd // config.n_head
    fused = dense(x, params["query_key_value"])
    context = np.zeros_like(x)
    for head in range(config.n_head):
        mine = slice(head * size, (head + 1) * size)
        query, key, value = (fused[:, i * config.n_embd :][:, mine] for i in range(3))
        for place in range(len(x)):
            scores = key[: place + 1] @ query[place] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            context[place, mine] = weights / weights.sum() @ value[: place + 1]
    return dense(context, params["output"])


def dense(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """`x W + b`."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(x: np.ndarray, params: dict[str, Any], config: Any) -> np.ndarray:
    """`(x - mean) / sqrt(variance + eps) * scale + bias` over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centered**2).mean(-1, keepdims=True) + config.layer_norm_epsilon)
    return centered / spread * params["scale"] + params["bias"]
