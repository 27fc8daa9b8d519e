# %% [markdown]
# # Fine-tuning with LoRA and MiMuon
#
# A pretrained Qwen3 is read from a Hugging Face folder and trained on another text: only factors of
# low rank change (LoRA), and the optimizers of this package treat each factor as a matrix. AdamW,
# Muon and MiMuon train the same factors from the same start; full fine-tuning is next to them.
#
# Without a folder of your own, a decoder with 0.6 million parameters is pretrained here first, on
# the Python language reference; the other text is Python code. Models are not in the wheel: this
# notebook needs a checkout. It takes about three minutes on two CPU cores, without a download.

# %%
# Makes a checkout importable, and installs what it needs.
CHECKOUT = ".."

import importlib.util
import pathlib
import subprocess
import sys
import tomllib

if not (pathlib.Path(CHECKOUT) / "models").is_dir():
    raise SystemExit(
        "models/ was not found: clone the repository, set CHECKOUT above, and run again"
    )
names = ("mimuon_jax", "flax", "matplotlib", "safetensors")
if any(importlib.util.find_spec(name) is None for name in names):
    project = tomllib.loads((pathlib.Path(CHECKOUT) / "pyproject.toml").read_text())
    packages = [str(pathlib.Path(CHECKOUT).resolve()), *project["dependency-groups"]["train"]]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
sys.path.insert(0, str(pathlib.Path(CHECKOUT).resolve()))

# %%
import argparse
import ast
import dataclasses
import inspect
import pydoc_data.topics
import tempfile
import typing

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from optax.contrib import MuonDimensionNumbers

from mimuon_jax import by_path, describe, diagnostics, mimuon, muon
from models.cross_entropy import cross_entropy
from models.qwen3 import Qwen3, load, matrix_dimension_numbers, save, tiny

PRETRAINED = None  # or the path of a folder with config.json, safetensors and tokenizer.json
PRETRAINING_STEPS = 120
STEPS = 60
BATCH, LENGTH = 16, 128  # rows, and tokens per row
RANK = 8
keys = dict(zip(("pretraining", "factors", "tuning"), jax.random.split(jax.random.key(0), 3)))

# %% [markdown]
# ## Two texts
#
# The last tenth of each is held out. Tokens are bytes, or those of the folder's tokenizer.


# %%
def encode(text):
    """The tokens of a text."""
    if PRETRAINED is None:
        return np.frombuffer(text.encode(), np.uint8)
    from tokenizers import Tokenizer

    return np.array(Tokenizer.from_file(f"{PRETRAINED}/tokenizer.json").encode(text).ids)


def rows_of(tokens, key=None):
    """Random rows of a text; without a key, rows at equal distances."""
    last = len(tokens) - LENGTH - 1
    starts = np.linspace(0, last, 32, dtype=int)
    if key is not None:
        starts = np.asarray(jax.random.randint(key, (BATCH,), 0, last))
    return jnp.asarray(tokens[starts[:, None] + np.arange(LENGTH + 1)], jnp.int32)


reference = encode("\n".join(pydoc_data.topics.topics.values()))
modules = (argparse, ast, dataclasses, inspect, tempfile, typing)
code = encode("\n".join(inspect.getsource(module) for module in modules))
held_out = {"reference": reference, "code": code}
held_out = {name: rows_of(text[-len(text) // 10 :]) for name, text in held_out.items()}
reference, code = (text[: -len(text) // 10] for text in (reference, code))

# %% [markdown]
# ## A pretrained folder
#
# `save` writes `config.json` and safetensors as the Hugging Face libraries do; `load` reads them.

# %%
folder = PRETRAINED or pathlib.Path(tempfile.mkdtemp()) / "pretrained"
model = Qwen3(tiny(), rngs=nnx.Rngs(0)) if PRETRAINED is None else load(folder)
graph, params = nnx.split(model, nnx.Param)
params = nnx.to_pure_dict(params)


@jax.jit
def loss(params, rows):
    """The mean negative log-likelihood of the next token, in nats."""
    model = nnx.merge(graph, params)
    return cross_entropy(model.hidden_states(rows[:, :-1]), model.head, rows[:, 1:])


def train(gradients, params, tx, text, key, steps):
    """Yields parameters and state before the first step and after every step."""

    @jax.jit
    def update(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    yield params, state
    for draw in jax.random.split(key, steps):
        params, state = update(params, state, gradients(params, rows_of(text, draw)))
        yield params, state


whole_gradients = jax.jit(jax.grad(loss))
if PRETRAINED is None:
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.02, PRETRAINING_STEPS // 20, PRETRAINING_STEPS)
    tx = muon(
        rate, auxiliary=optax.adamw(lambda step: rate(step) / 4), matrices=matrix_dimension_numbers
    )
    *_, (pretrained, _) = train(
        whole_gradients, params, tx, reference, keys["pretraining"], PRETRAINING_STEPS
    )
    save(nnx.merge(graph, pretrained), folder)
params = nnx.to_pure_dict(nnx.state(load(folder), nnx.Param))
for name, rows in held_out.items():
    print(f"pretrained, held-out {name}: {loss(params, rows):.2f} nats per token")

# %% [markdown]
# ## Factors of low rank
#
# Every kernel `W` of the layers becomes `W + A B`, with `A` of `RANK` columns, drawn at random, and
# `B = 0`. Only `A` and `B` are trained; `describe` shows that they are matrices.

# %%
kernels = {path: x for path, x in flatten_dict(params).items() if path[-1] == "kernel"}
kernels = {path: x for path, x in kernels.items() if path[0] == "layers"}
draws = dict(zip(kernels, jax.random.split(keys["factors"], len(kernels))))
factors = {
    "/".join(path[1:-1]): {
        "lora_a": jax.random.normal(draws[path], (*x.shape[:2], RANK)) / x.shape[1] ** 0.5,
        "lora_b": jnp.zeros((x.shape[0], RANK, x.shape[2])),
    }
    for path, x in kernels.items()
}


def merged(params, factors):
    """The parameters with the product of the factors added to every kernel."""
    flat = flatten_dict(params)
    for name, factor in factors.items():
        flat[("layers", *name.split("/"), "kernel")] += factor["lora_a"] @ factor["lora_b"]
    return unflatten_dict(flat)


@jax.jit
def factor_gradients(factors, rows):
    """The gradient of the loss with respect to the factors; the pretrained weights stay."""
    return jax.grad(lambda factors: loss(merged(params, factors), rows))(factors)


matrices = by_path({"lora_[ab]$": MuonDimensionNumbers(reduction_axis=1, output_axis=2)})
print(describe(factors, matrices))

# %% [markdown]
# ## Four ways to fine-tune
#
# The same rows, schedule and number of steps. Each learning rate is the best of those tried on such
# a decoder, pretrained for 150 steps: 0.003, 0.01 and 0.03 for AdamW, 0.01, 0.03 and 0.1 for the
# factors with Muon and MiMuon, 0.003 and 0.01 for all weights. One seed: differences of a few
# hundredths of a nat mean nothing.
#
# MuonClip is not among them: it shrinks query and key kernels to bound the attention logits, which
# Qwen3 already bounds by normalizing queries and keys, and it needs those kernels, not factors of
# them. Choose it to train all weights of a model without such norms, such as GPT-2. For factors
# choose Muon, or MiMuon where small gradients should make small updates.


# %%
def warmup(peak):
    """A learning rate that rises for a tenth of the steps, and falls to 0 along a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(STEPS // 10, 1), STEPS)


ways = {
    "AdamW, factors": optax.adamw(warmup(0.01)),
    "Muon, factors": muon(warmup(0.03), matrices=matrices),
    "MiMuon, factors": mimuon(warmup(0.03), matrices=matrices),  # threshold 0.005
    "Muon, all weights": muon(
        warmup(0.01), auxiliary=optax.adamw(warmup(0.0025)), matrices=matrix_dimension_numbers
    ),
}
curves, tuned, open_gates = {}, {}, []
for way, tx in ways.items():
    low_rank = way.endswith("factors")
    start, gradients = (factors, factor_gradients) if low_rank else (params, whole_gradients)
    curves[way] = []
    for step, (now, state) in enumerate(train(gradients, start, tx, code, keys["tuning"], STEPS)):
        if way.startswith("MiMuon") and step > 0:
            open_gates.append(float(diagnostics.gate_rate(state)))
        if step % max(STEPS // 6, 1) == 0:
            tuned[way] = merged(params, now) if low_rank else now
            losses = [float(loss(tuned[way], rows)) for rows in held_out.values()]
            curves[way].append((step, *losses))
    numbers = sum(x.size for x in jax.tree.leaves(start))
    line = ", ".join(f"{name} {x:.2f}" for name, x in zip(held_out, curves[way][-1][1:]))
    print(f"{way}: {numbers:,} numbers trained; held-out {line} nats per token")
print(f"MiMuon's gates, mean over matrices and steps: {np.mean(open_gates):.0%} open")

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for way, points in curves.items():
    steps, *columns = zip(*points)
    for axes, values in zip(panels, reversed(columns)):
        axes.plot(steps, values, marker="o", markersize=3, label=way)
for axes, title in zip(panels, ("Python code: learned", "language reference: forgotten")):
    axes.set(title=title, xlabel="optimizer step", ylabel="held-out loss (nats per token)")
    axes.grid(alpha=0.3)
panels[0].legend()
plt.show()
