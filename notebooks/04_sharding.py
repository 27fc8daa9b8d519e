# %% [markdown]
# # One update on a mesh
#
# A matrix can only be orthogonalized as a whole. mimuon_jax assembles sharded matrices in one
# exchange, after which every device owns some whole matrices, and splits the updates again in a
# second one. The iteration itself exchanges nothing. This notebook counts the collectives in the
# program that is compiled for eight virtual devices, and compares with optax's Muon.

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
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before the first array

# %%
import re

import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import P
from jax.sharding import AxisType, NamedSharding

from mimuon_jax import muon

LAYERS = 8
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

# %% [markdown]
# ## Parameters as they are sharded in training
#
# Attention and MLP kernels of some layers, sharded over eight devices as in fully sharded data
# parallelism.

# %%
mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
SHAPES = {"query": (256, 256), "output": (256, 256), "up": (256, 768), "down": (768, 256)}
placed = {
    f"layer{i}": {
        name: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, P(None, "fsdp")))
        for name, shape in SHAPES.items()
    }
    for i in range(LAYERS)
}
layout = jax.tree.map(lambda leaf: leaf.sharding, placed)


def compiled(tx):
    """One update, compiled for the mesh but not run."""
    state = jax.eval_shape(tx.init, placed)
    leaves = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(placed)}
    replicated = NamedSharding(mesh, P())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaves.get(x.shape, replicated)),
        state,
    )
    update = jax.jit(tx.update, out_shardings=(layout, None))
    return update.lower(placed, state, placed).compile()


# %%
OPTIMIZERS = {
    "mimuon_jax.muon": muon(0.02, orthogonalizer="jordan", shardings=layout),
    "optax.contrib.muon": optax.contrib.muon(0.02),
}
counts = {}
for name, tx in OPTIMIZERS.items():
    text = compiled(tx).as_text()
    counts[name] = [len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in KINDS]
    print(f"{name:20}", dict(zip(KINDS, counts[name])), "together", sum(counts[name]))

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for i, (name, values) in enumerate(counts.items()):
    bars = axes.bar(np.arange(len(KINDS)) + 0.4 * i, values, width=0.4, label=name)
    axes.bar_label(bars)
axes.set_xticks(np.arange(len(KINDS)) + 0.2, KINDS, rotation=20)
axes.set(ylabel="collectives in one update", title=f"{LAYERS} layers on 8 devices")
axes.grid(alpha=0.3, axis="y")
axes.legend()
plt.show()
