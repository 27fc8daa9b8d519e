# %% [markdown]
# # MiMuon's gate
#
# MiMuon orthogonalizes a matrix's momentum if a measure of it reaches the threshold `tau` (the gate
# is open), and takes the step of momentum SGD otherwise (the gate is closed). The measure and the
# threshold decide whether MiMuon is Muon, momentum SGD or a mixture.

# %%
# Installs what is missing. mimuon_jax itself comes from SOURCE: a checkout, a wheel, or "git+" and
# the address of the repository. It is not on PyPI yet.
SOURCE = ".."

import importlib.util
import pathlib
import subprocess
import sys

missing = [name for name in ("matplotlib",) if importlib.util.find_spec(name) is None]
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
import numpy as np
import optax

from mimuon_jax import diagnostics, frobenius, gap, mimuon, rms, spectral_norm

STEPS = 300
MEASURES = {"rms": rms, "gap": gap, "spectral": spectral_norm, "frobenius": frobenius}

# %% [markdown]
# ## A training run to look at
#
# A network with three hidden layers is trained; every measure of every momentum is recorded.

# %%
keys = jax.random.split(jax.random.key(0), 8)
x = jax.random.normal(keys[0], (2048, 32))
y = jnp.sin(x @ jax.random.normal(keys[1], (32, 8)) / 3)
SHAPES = {"in": (32, 64), "middle": (64, 64), "deep": (64, 64), "out": (64, 8)}
weights = {
    name: jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5
    for key, (name, shape) in zip(keys[2:], SHAPES.items())
}


def loss(weights, rows):
    """The mean square error of some rows."""
    h = x[rows]
    for name in ("in", "middle", "deep"):
        h = jax.nn.relu(h @ weights[name])
    return jnp.mean((h @ weights["out"] - y[rows]) ** 2)


def train(tx):
    """The losses, open rates and measures of a training run."""

    @jax.jit
    def step(weights, state, key):
        rows = jax.random.randint(key, (64,), 0, len(x))
        value, gradients = jax.value_and_grad(loss)(weights, rows)
        updates, state = tx.update(gradients, state, weights)
        momentum = optax.tree.get(state, "HeavyBallState").mu
        measured = {name: {k: f(m) for k, m in momentum.items()} for name, f in MEASURES.items()}
        new = optax.apply_updates(weights, updates)
        return new, state, (value, diagnostics.gate_rate(state), measured)

    now, state, kept = weights, tx.init(weights), []
    for key in jax.random.split(keys[7], STEPS):
        now, state, record = step(now, state, key)
        kept.append(record)
    losses, rates, measured = jax.tree.map(lambda *values: np.stack(values), *kept)
    return losses, rates, measured


losses, rates, measured = train(mimuon(0.02, threshold=0.1))

# %% [markdown]
# ## Open gates against the threshold
#
# For every measure: the share of matrices and steps of this run for which the gate would be open.

# %%
thresholds = np.logspace(-7, 2, 91)
figure, (over_thresholds, over_steps) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, values in measured.items():
    every = np.stack(list(values.values()))
    share = [(every >= threshold).mean() for threshold in thresholds]
    over_thresholds.plot(thresholds, share, label=name)
over_thresholds.axvline(0.005, color="gray", linestyle=":", label="0.005, the paper's")
over_thresholds.set(xscale="log", xlabel="threshold tau (unit of the momentum)")
over_thresholds.set(ylabel="share of open gates")
for name, values in measured["rms"].items():
    over_steps.plot(values, label=name)
over_steps.axhline(0.1, color="gray", linestyle=":", label="tau of this run")
over_steps.set(xlabel="optimizer step", ylabel="rms singular value of the momentum", yscale="log")
for axes in (over_thresholds, over_steps):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## From Muon to momentum SGD
#
# `tau = 0` is exactly Muon, and `tau = inf` is exactly momentum SGD.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
THRESHOLDS = (0.0, 0.1, 0.2, float("inf"))
for threshold, colour in zip(THRESHOLDS, plt.colormaps["viridis"](np.linspace(0, 0.9, 4))):
    losses, rates, _ = train(mimuon(0.02, threshold=threshold))
    window = max(STEPS // 20, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    left.plot(smooth, color=colour, label=f"tau = {threshold:g}")
    right.plot(rates, color=colour)
left.set(xlabel="optimizer step", yscale="log")
left.set(ylabel=f"mean square error of batches, mean over {window} steps")
left.legend()
right.set(xlabel="optimizer step", ylabel="share of open gates", ylim=(-0.05, 1.05))
for axes in (left, right):
    axes.grid(alpha=0.3)
plt.show()
