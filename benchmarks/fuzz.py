"""Random options on the command line, and random trees through the optimizers of the library."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mimuon_jax
from train import cli
from train.optimizers import OPTIMIZERS

VALUES = (
    "0",
    "-1",
    "1",
    "1e-3",
    "1e400",
    "nan",
    "inf",
    "x",
    "",
    "None",
    "9" * 30,
    "\u00e9",
    "~",
    "a,b",
)
WORDS = ("--", "-h", "--steps", "=", "--optimizer", "muon", "lm", "\0", "--optimizer.", "--data")
OPTIMIZER = (
    lambda: mimuon_jax.muon(0.02),
    lambda: mimuon_jax.mimuon(0.02, threshold=0.1),
    lambda: mimuon_jax.musgd(0.02),
    lambda: mimuon_jax.spectral_adam(0.02),
    lambda: mimuon_jax.shampoo(0.02),
    lambda: mimuon_jax.sgdm(0.02),
)


def options(count: int) -> Iterator[tuple[str, int, str]]:
    """Random command lines, without training: the words, the exit code, and what was wrong."""
    draw = np.random.default_rng(0)
    presets = ("lm", "classify", "detect", "lmm", "evaluate", "sample", "export", "compare")
    flags = [
        f"--optimizer.{f.name}" for make in OPTIMIZERS.values() for f in dataclasses.fields(make)
    ]
    flags += [
        "--steps",
        "--mesh",
        "--seed",
        "--batch-size",
        "--run-dir",
        "--optimizer",
        "--profile",
    ]
    for _ in range(count):
        words = [str(draw.choice(presets))]
        for _ in range(draw.integers(0, 4)):
            words += [str(draw.choice(flags + list(WORDS))), str(draw.choice(VALUES))]
        yield _parsed(words)


def _parsed(words: list[str]) -> tuple[str, int, str]:
    """How the command line ends if training itself does nothing."""
    error = io.StringIO()
    trained = mock.Mock(trained=True)
    with (
        mock.patch.object(cli, "run", return_value=trained),
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            code, problem = cli.main(words), ""
        except BaseException as raised:
            code, problem = -1, repr(raised)
    lines = len(error.getvalue().splitlines())
    if not problem and (code not in (0, 1, 2) or lines != (code != 0)):
        problem = f"exit code {code} with {lines} lines"
    return " ".join(words), code, problem


def library(count: int) -> Iterator[tuple[str, int, str]]:
    """Random trees: updates are finite, of the right shape and type, or the error is ours."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(int(size) for size in draw.choice([1, 2, 3, 5], size=draw.integers(0, 3)))
        dtype = jnp.dtype(draw.choice(["float32", "bfloat16"]))
        scale = 10.0 ** float(draw.integers(-30, 15))
        make = OPTIMIZER[draw.integers(len(OPTIMIZER))]
        params = {"layer": {"kernel": jnp.ones(shape, dtype)}}
        gradients = {"layer": {"kernel": jnp.asarray(scale * draw.normal(size=shape), dtype)}}
        yield f"{shape} {dtype} {scale:g}", *_updated(make(), params, gradients)


def _updated(
    optimizer: optax.GradientTransformation, params: Any, gradients: Any
) -> tuple[int, str]:
    """Whether two updates are as they should be."""
    try:
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        updates, _ = optimizer.update(gradients, state, params)
    except (ValueError, TypeError) as error:
        return 2, "" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except Exception as error:
        return 1, repr(error)
    same = jax.tree.map(lambda u, p: u.shape == p.shape and u.dtype == p.dtype, updates, params)
    finite = jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates)
    return 0, "" if all(jax.tree.leaves((same, finite))) else "not finite, or of another type"
