# %% [markdown]
# # Quickstart: MiMuon instead of AdamW
#
# How to replace AdamW by MiMuon in a Flax nnx project and in a linen project: one line changes.

# %%
# Installs what is missing. mimuon_jax itself comes from SOURCE: a checkout, a wheel, or "git+" and
# the address of the repository. It is not on PyPI yet.
SOURCE = ".."

import importlib.util
import pathlib
import subprocess
import sys

missing = [name for name in ("flax", "matplotlib") if importlib.util.find_spec(name) is None]
if importlib.util.find_spec("mimuon_jax") is None:
    if SOURCE == ".." and not pathlib.Path("../mimuon_jax").is_dir():
        raise SystemExit("mimuon_jax is not on PyPI yet: set SOURCE above, and run this cell again")
    missing.append(SOURCE)
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from mimuon_jax import describe, diagnostics, mimuon, muon

STEPS = 300

# %% [markdown]
# ## The task
#
# A network with two hidden layers learns eight functions that another, random network computes,
# from noisy examples. All runs use the same batches and a cosine schedule, and each optimizer has
# the best of four learning rates. The loss is measured on examples that are held out.
#
# Expect a gain over AdamW where most weights are in matrices and training is long: in the hidden
# layers of transformers, for example. Here it is small. Do not expect one from MiMuon over Muon:
# MiMuon takes some steps of momentum SGD in between, and in the runs of `docs/results` it was as
# good as Muon or worse. No toy problem says which optimizer is best for your task.

# %%
TRAINING, HELD_OUT = 16384, 2048
keys = dict(
    zip(
        ("examples", "first", "second", "noise", "batches", "network"),
        jax.random.split(jax.random.key(0), 6),
    )
)
deviations = jnp.arange(1, 33) ** -0.7  # of the inputs: some matter more than others
deviations = deviations / jnp.sqrt(jnp.mean(deviations**2))
x = deviations * jax.random.normal(keys["examples"], (TRAINING + HELD_OUT, 32))
first = 2 * jax.random.normal(keys["first"], (32, 64)) / 32**0.5
second = jax.random.normal(keys["second"], (64, 8)) / 64**0.5
y = jnp.tanh(x @ first) @ second
y = y + 0.1 * jax.random.normal(keys["noise"], y.shape)
BATCHES = jax.random.randint(keys["batches"], (STEPS, 64), 0, TRAINING)  # rows of x and y
HELD_OUT_ROWS = jnp.arange(TRAINING, TRAINING + HELD_OUT)


def mean_square(network, rows):
    """The mean square error of some rows."""
    return jnp.mean((network(x[rows]) - y[rows]) ** 2)


def cosine(peak):
    """A learning-rate schedule."""
    return optax.cosine_decay_schedule(peak, STEPS)


# %% [markdown]
# ## Flax nnx
#
# `describe` shows which parameters MiMuon treats as matrices, and which it leaves to AdamW.


# %%
class Network(nnx.Module):
    """Two hidden layers and a head."""

    def __init__(self, rngs):
        self.up = nnx.Linear(32, 128, rngs=rngs)
        self.middle = nnx.Linear(128, 128, rngs=rngs)
        self.head = nnx.Linear(128, 8, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.middle(nnx.relu(self.up(x)))))


print(describe(nnx.state(Network(nnx.Rngs(keys["network"])), nnx.Param)))

# %%
auxiliary = cosine(3e-3)  # AdamW's learning rate for biases and the head
OPTIMIZERS = {
    "AdamW": optax.adamw(cosine(0.01)),
    "Muon": muon(cosine(0.02), auxiliary_learning_rate=auxiliary),
    "MiMuon": mimuon(cosine(0.02), auxiliary_learning_rate=auxiliary),  # the line that changes
}


def train_nnx(transformation):
    """Trains with nnx; returns steps and held-out losses."""
    model = Network(nnx.Rngs(keys["network"]))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rows):
        gradients = nnx.grad(mean_square)(model, rows)
        optimizer.update(model, gradients)

    evaluate = nnx.jit(mean_square)
    losses = {0: float(evaluate(model, HELD_OUT_ROWS))}
    for k, rows in enumerate(BATCHES, start=1):
        step(model, optimizer, rows)
        if k % max(STEPS // 30, 1) == 0:
            losses[k] = float(evaluate(model, HELD_OUT_ROWS))
    return losses


curves = {name: train_nnx(transformation) for name, transformation in OPTIMIZERS.items()}
for name, losses in curves.items():
    print(f"{name:8} held-out mean square error {losses[max(losses)]:.4f}")

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for (name, losses), style in zip(curves.items(), ("-", "--", "-.")):
    axes.plot(list(losses), list(losses.values()), style, label=name)
axes.axhline(0.01, color="gray", linestyle=":", label="variance of the noise")
axes.set(xlabel="optimizer step", ylabel="held-out mean square error", yscale="log")
axes.set_title("Flax nnx")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# ## Flax linen
#
# The same line in a `TrainState`. The optimizer's state also records what the gate did.


# %%
class LinenNetwork(nn.Module):
    """The same network."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128, name="up")(x))
        x = nn.relu(nn.Dense(128, name="middle")(x))
        return nn.Dense(8, name="head")(x)


network = LinenNetwork()
# tx = optax.adamw(cosine(0.01))
tx = mimuon(cosine(0.02), auxiliary_learning_rate=auxiliary)
params = network.init(keys["network"], x[:1])["params"]
state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)


@jax.jit
def step(state, rows):
    """One training step with linen; returns the loss before it, too."""
    loss, gradients = jax.value_and_grad(
        lambda params: mean_square(lambda x: state.apply_fn({"params": params}, x), rows)
    )(state.params)
    return state.apply_gradients(grads=gradients), loss


for rows in BATCHES:
    state, loss = step(state, rows)
print(f"mean square error of the last batch {float(loss):.4f}")
print("gate open:", {k: bool(v) for k, v in diagnostics.gate_decisions(state.opt_state).items()})
