"""Writes `tests/momenta.npz`: momenta of a small character transformer trained with Muon.

    python -m tests.make_momenta TEXT_FILE

Needs about two minutes on two CPU cores; the committed file comes from the tiny Shakespeare text.
The model is a decoder with 2 layers, width 128 and 4 heads, trained on batches of 16 sequences of
128 characters. The file holds the heavy-ball momentum, mu = 0.95, in float32: six square matrices,
one wide and one tall, from the beginning, the middle and the end of 300 steps.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimuon_jax.linalg.newton_schulz import newton_schulz

WIDTH, HEADS, LAYERS, LENGTH, BATCH, STEPS = 128, 4, 2, 128, 16, 300
MU, LEARNING_RATE = 0.95, 0.02
KEPT = [(step, 1, name) for step in (5, 60, 300) for name in ("query", "output")]
KEPT += [(60, 0, "up"), (300, 1, "down")]

Parameters = dict[str, Any]


def initial(vocabulary: int) -> Parameters:
    """Parameters: two tables and, for every layer, six matrices ``[in, out]``."""
    generator = np.random.default_rng(0)

    def normal(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal((rows, columns)) / rows**0.5, jnp.float32)

    shapes = dict.fromkeys(("query", "key", "value", "output"), (WIDTH, WIDTH))
    shapes |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(LAYERS)]
    return {
        "tokens": normal(vocabulary, WIDTH),
        "positions": normal(LENGTH, WIDTH),
        "head": normal(WIDTH, vocabulary),
        "layers": layers,
    }


def rms_norm(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def logits(parameters: Parameters, tokens: jax.Array) -> jax.Array:
    """``[batch, length]`` characters to ``[batch, length, vocabulary]``."""
    x = parameters["tokens"][tokens] + parameters["positions"][None]
    for layer in parameters["layers"]:
        y = rms_norm(x)
        split = (*tokens.shape, HEADS, WIDTH // HEADS)
        q, k, v = ((y @ layer[name]).reshape(split) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.reshape(x.shape) @ layer["output"]
        x = x + jax.nn.gelu(rms_norm(x) @ layer["up"]) @ layer["down"]
    return rms_norm(x) @ parameters["head"]


def loss(parameters: Parameters, tokens: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits(parameters, tokens[:, :-1]))
    chosen = jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen)


@jax.jit
def train_step(
    parameters: Parameters, momentum: Parameters, tokens: jax.Array
) -> tuple[Parameters, Parameters, jax.Array]:
    """One step of Muon on the layers' matrices, of sign momentum on the tables."""
    value, gradient = jax.value_and_grad(loss)(parameters, tokens)
    momentum = jax.tree.map(lambda m, g: MU * m + g, momentum, gradient)

    def update(path: tuple[Any, ...], p: jax.Array, m: jax.Array) -> jax.Array:
        if path[0] == jax.tree_util.DictKey("layers"):
            return p - LEARNING_RATE * newton_schulz(m)
        return p - 1e-3 * jnp.sign(m)

    return jax.tree_util.tree_map_with_path(update, parameters, momentum), momentum, value


def main() -> None:
    """Trains, and writes the chosen momenta next to this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text of at least 100 kB")
    text = np.frombuffer(parser.parse_args().text.read_bytes(), np.uint8)
    characters, coded = np.unique(text, return_inverse=True)
    generator = np.random.default_rng(0)
    parameters = initial(len(characters))
    momentum = jax.tree.map(jnp.zeros_like, parameters)
    kept = {}
    for step in range(1, STEPS + 1):
        starts = generator.integers(0, len(coded) - LENGTH - 1, size=BATCH)
        batch = jnp.asarray(coded[starts[:, None] + np.arange(LENGTH + 1)], jnp.int32)
        parameters, momentum, value = train_step(parameters, momentum, batch)
        if step % 50 == 0:
            print(f"step {step}: loss {float(value):.3f} nats a character")
        for at, layer, name in KEPT:
            if at == step:
                kept[f"step {at}, layer {layer}, {name}"] = momentum["layers"][layer][name]
    np.savez(Path(__file__).with_name("momenta.npz"), **{k: np.asarray(v) for k, v in kept.items()})


if __name__ == "__main__":
    main()
