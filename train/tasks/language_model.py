"""Byte-level language modelling: a Qwen3-style decoder on plain text."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import P
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from models.qwen3 import Qwen3, Qwen3Config, matrix_dimension_numbers, sample, tiny
from train.config import Config
from train.data.text import (
    TextData,
    Windows,
    evaluation_windows,
    read_text,
    split,
    training_batches,
)
from train.errors import require
from train.mesh import batch_sharding
from train.task import Task, Tree, split_batch

BYTES = 256

# Data parallel: weights are replicated, gradients summed.
SHARDING_RULES = [(".*", P())]

Tokens = UInt8[Array, "B T+1"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The text that is written at the end of a run."""

    prompt: str = "The "
    """What the text goes on from."""

    length: int = 400
    """Bytes to write."""

    temperature: float = 0.8
    """Of the softmax; 0 always takes the likeliest byte, 1 draws from the model's distribution."""

    def __post_init__(self) -> None:
        require(bool(self.prompt), "sample.prompt is empty; a text has to start with something")
        require(self.length >= 1, f"sample.length={self.length} must be at least 1")
        require(
            0 <= self.temperature < math.inf,
            f"sample.temperature={self.temperature} must be a finite number >= 0",
        )


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Config):
    """A byte-level language model; losses are in nats a byte."""

    data: TextData = field(default_factory=TextData)
    model: Qwen3Config = field(default_factory=tiny)
    sample: Sample = field(default_factory=Sample)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.model.vocab_size == BYTES,
            f"model.vocab_size={self.model.vocab_size} must be {BYTES}: tokens are bytes",
        )

    def task(self, mesh: Mesh) -> Task:
        """Reads the text and builds the model's functions."""
        text = read_text(self.data.path)
        training, held_out = split(text, self.data)
        model = nnx.eval_shape(lambda: Qwen3(self.model, rngs=nnx.Rngs(0)))
        graph, _, _ = nnx.split(model, nnx.Param, ...)

        def init(key: PRNGKeyArray) -> tuple[Tree, Tree]:
            model = Qwen3(self.model, rngs=nnx.Rngs(key))
            _, params, rest = nnx.split(model, nnx.Param, ...)
            return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

        def losses(params: Tree, rest: Tree, tokens: Tokens) -> Float[Array, "B T"]:
            integers = tokens.astype(jnp.int32)
            logits = nnx.merge(graph, params, rest)(integers[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, integers[:, 1:])

        def loss(params: Tree, rest: Tree, tokens: Tokens, key: PRNGKeyArray, step: Array) -> Any:
            del key, step  # a decoder without dropout draws nothing
            return losses(params, rest, tokens).mean(), (rest, {})

        def finish(params: Tree, rest: Tree, directory: Path) -> str:
            text = sample_text(nnx.merge(graph, params, rest), self.sample, seed=self.seed)
            (directory / "sample.txt").write_text(text + "\n")
            return text

        return Task(
            init=init,
            loss=loss,
            batches=training_batches(training, batch_size=self.batch_size, seed=self.seed),
            evaluate=_evaluation(
                losses, held_out, self.data.evaluation_sequences, self.batch_size, mesh
            ),
            finish=finish,
            matrices=matrix_dimension_numbers,
            sharding_rules=SHARDING_RULES,
            items_a_step=self.batch_size * self.data.sequence_length,
            unit="bytes",
            loss_unit="nats/byte",
            data={"bytes": len(text), "crc32": zlib.crc32(text)},
        )


def sample_text(model: Qwen3, options: Sample, *, seed: int) -> str:
    """The prompt and what the model adds; bytes that are no UTF-8 become replacement signs."""
    prompt = options.prompt.encode()
    added = sample(
        model,
        jnp.asarray(list(prompt), jnp.int32)[None],
        options.length,
        jax.random.key(seed),
        temperature=options.temperature,
    )
    return (prompt + bytes(np.asarray(added[0]).tolist())).decode(errors="replace")


def _evaluation(
    losses: Callable[[Tree, Tree, Tokens], Float[Array, "B T"]],
    held_out: Windows,
    limit: int,
    batch_size: int,
    mesh: Mesh,
) -> Callable[[Tree, Tree], dict[str, float]]:
    """The mean loss of held-out windows, each byte counted once: batches are filled with weight 0.

    The batches stay on the devices from one evaluation to the next.
    """
    windows = evaluation_windows(held_out, limit)
    filled = -len(windows) % batch_size
    rows = np.concatenate([windows, np.zeros((filled, windows.shape[1]), np.uint8)])
    weights = np.concatenate([np.ones(len(windows), np.float32), np.zeros(filled, np.float32)])
    process = slice(jax.process_index(), None, jax.process_count())
    batches = [
        split_batch((rows[i:j][process], weights[i:j][process]), batch_sharding(mesh))
        for i, j in ((i, i + batch_size) for i in range(0, len(rows), batch_size))
    ]

    @jax.jit
    def total(params: Tree, rest: Tree, tokens: Tokens, weight: Float[Array, "B"]) -> Array:
        return (losses(params, rest, tokens).mean(axis=1) * weight).sum()

    def evaluate(params: Tree, rest: Tree) -> dict[str, float]:
        totals = [total(params, rest, *batch) for batch in batches]
        return {"loss": sum(float(t) for t in totals) / len(windows)}

    return evaluate
