# %% [markdown]
# # Quickstart: MiMuon instead of AdamW
#
# How to replace AdamW by MiMuon in a Flax nnx project and in a linen project: one line changes.

# %%
# Installs what is missing: a release, or the checkout that contains this notebook.
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("mimuon_jax") is None:
    source = ".." if pathlib.Path("../pyproject.toml").exists() else "mimuon-jax"
    packages = [source, "flax", "matplotlib"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from mimuon_jax import describe, diagnostics, mimuon

STEPS = 300

# %% [markdown]
# ## The task
#
# A network with two hidden layers learns the function that another, random network computes, from
# batches of 64 noisy examples. Both optimizers have the usual cosine schedule. A single toy problem
# says nothing about which optimizer is better.

# %%
keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(keys[0], (512, 32))
first, second = (
    jax.random.normal(key, shape) for key, shape in zip(keys[1:3], ((32, 64), (64, 1)))
)
y = jnp.tanh(x @ first / 32**0.5) @ second / 64**0.5
y = y + 0.1 * jax.random.normal(keys[3], y.shape)
ROWS = jax.random.randint(keys[3], (STEPS, 64), 0, len(x))  # the rows of each batch


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
        self.head = nnx.Linear(128, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.middle(nnx.relu(self.up(x)))))


print(describe(nnx.state(Network(nnx.Rngs(0)), nnx.Param)))

# %%
OPTIMIZERS = {
    "AdamW": optax.adamw(cosine(3e-3)),
    "MiMuon": mimuon(cosine(0.02), auxiliary_learning_rate=cosine(3e-3)),  # the line that changes
}


def train_nnx(transformation):
    """The losses of a training run with nnx."""
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rows):
        loss, gradients = nnx.value_and_grad(mean_square)(model, rows)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer, rows)) for rows in ROWS]


curves = {name: train_nnx(transformation) for name, transformation in OPTIMIZERS.items()}

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, losses in curves.items():
    axes.plot(losses, label=name, alpha=0.8)
axes.axhline(0.01, color="gray", linestyle=":", label="variance of the noise")
axes.set(
    xlabel="optimizer step", ylabel="mean square error of a batch", yscale="log", title="Flax nnx"
)
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
        return nn.Dense(1, name="head")(x)


network = LinenNetwork()
# tx = optax.adamw(cosine(3e-3))
tx = mimuon(cosine(0.02), auxiliary_learning_rate=cosine(3e-3))
state = TrainState.create(apply_fn=network.apply, params=network.init(keys[3], x)["params"], tx=tx)


@jax.jit
def step(state, rows):
    """One training step with linen."""
    loss, gradients = jax.value_and_grad(
        lambda params: mean_square(lambda x: state.apply_fn({"params": params}, x), rows)
    )(state.params)
    return state.apply_gradients(grads=gradients), loss


for rows in ROWS:
    state, loss = step(state, rows)
print(f"loss {float(loss):.2e}")
print("gate open:", {k: bool(v) for k, v in diagnostics.gate_decisions(state.opt_state).items()})
