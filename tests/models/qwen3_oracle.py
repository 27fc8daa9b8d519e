"""A slow float64 NumPy rewrite of the Qwen3 decoder: one token, one head, one layer at a time."""

from typing import Any

import numpy as np

Params = dict[str, Any]


def logits(params: Params, config: Any, tokens: np.ndarray) -> np.ndarray:
    """Float64 logits [batch, time, vocabulary] of a tree of parameters as nested dicts."""
    params = as_float64(params)
    return np.stack([one_sequence(params, config, row) for row in np.asarray(tokens)])


def loss(params: Params, config: Any, tokens: np.ndarray) -> float:
    """Mean negative log-likelihood of each next token, in nats."""
    scores = logits(params, config, tokens)[:, :-1]
    scores = scores - scores.max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    return float(np.mean(np.log(np.exp(scores).sum(-1)) - chosen))


def one_sequence(params: Params, config: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [time, vocabulary] of one row of tokens."""
    table = params["embed"]["embedding"]
    stream = np.stack([table[token] for token in tokens])
    for index in range(config.num_hidden_layers):
        layer = take(params["layers"], index)
        normed = rms_norm(stream, layer["attention_norm"]["scale"], config)
        stream = stream + attention(normed, layer["attention"], config)
        normed = rms_norm(stream, layer["mlp_norm"]["scale"], config)
        gate = normed @ layer["mlp"]["gate"]["kernel"]
        up = normed @ layer["mlp"]["up"]["kernel"]
        stream = stream + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down"]["kernel"]
    stream = rms_norm(stream, params["final_norm"]["scale"], config)
    if config.tie_word_embeddings:
        return stream @ table.T
    return stream @ params["lm_head"]["kernel"]


def attention(x: np.ndarray, params: Params, config: Any) -> np.ndarray:
    """Causal attention of [time, width], head by head, position by position."""
    size, heads = config.head_dim, config.num_attention_heads
    shared = heads // config.num_key_value_heads
    query, key, value = (project(x, params[name]) for name in ("query", "key", "value"))
    context = np.zeros_like(query)
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        theirs = slice(head // shared * size, (head // shared + 1) * size)
        q = rms_norm(query[:, mine], params["query_norm"]["scale"], config)
        k = rms_norm(key[:, theirs], params["key_norm"]["scale"], config)
        q = np.stack([turn(row, position, config) for position, row in enumerate(q)])
        k = np.stack([turn(row, position, config) for position, row in enumerate(k)])
        for position in range(len(x)):
            scores = k[: position + 1] @ q[position] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            context[position, mine] = weights @ value[: position + 1, theirs]
    return project(context, params["output"])


def project(x: np.ndarray, params: Params) -> np.ndarray:
    """A product, and a bias where there is one."""
    return x @ params["kernel"] + params.get("bias", 0)


def turn(x: np.ndarray, position: int, config: Any) -> np.ndarray:
    """Rotary embedding of one head as complex numbers: `(x_i + j x_{i + H/2}) e^{j angle_i}`."""
    half, scaling = len(x) // 2, config.rope_scaling
    angles = [position * frequency(i, len(x), config.rope_theta, scaling) for i in range(half)]
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * np.array(angles))
    if scaling.rope_type == "yarn":
        factor = scaling.attention_factor
        turned *= 0.1 * np.log(scaling.factor) + 1 if factor is None else factor
    return np.concatenate([turned.real, turned.imag])


def frequency(i: int, size: int, theta: float, scaling: Any) -> float:
    """Radians per position of one pair of features, as the YaRN paper defines them."""
    plain = theta ** (-2 * i / size)
    if scaling.rope_type != "yarn":
        return plain / scaling.factor
    # The pair that makes this many turns within the context of pretraining: solved for `i`.
    fast, slow = (
        size / 2 * np.log(scaling.original_max_position_embeddings / (2 * np.pi * turns))
        / np.log(theta)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )  # fmt: skip
    if scaling.truncate:
        fast, slow = np.floor(fast), np.ceil(slow)
    fast, slow = max(fast, 0), min(slow, size - 1)
    if i <= fast:
        return plain
    if i >= slow:
        return plain / scaling.factor
    share = (i - fast) / (slow - fast)
    return plain * (1 - share) + plain / scaling.factor * share


def rms_norm(x: np.ndarray, scale: np.ndarray, config: Any) -> np.ndarray:
    """`x / sqrt(mean(x^2) + eps) * scale` over the last axis."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.rms_norm_eps) * scale


def as_float64(params: Any) -> Any:
    """The same tree of nested dicts with float64 NumPy arrays."""
    if isinstance(params, dict):
        return {name: as_float64(value) for name, value in params.items()}
    return np.asarray(params, np.float64)


def take(params: Any, index: int) -> Any:
    """One layer of a stacked tree."""
    if isinstance(params, dict):
        return {name: take(value, index) for name, value in params.items()}
    return params[index]
